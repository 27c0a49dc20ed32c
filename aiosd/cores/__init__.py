"""Cores, kernel side: drivers, what they run, and the choice among them.

`sequence.py` is the data; `worker.py` the process that computes; `local.py` puts sequences on a
worker as the scheduling policy says; `buffers.py` holds their KV while they are off it;
`dispatcher.py` knows all cores by name and picks one for a request.
"""
