"""Cores, kernel side: drivers, what they run, and the choice among them.

`core.py` says what a core is, whatever computes in it, `drivers.py` what makes one of each kind.
`sequence.py` is the data; `worker.py` the process that computes; `local.py` puts sequences on a
worker as the scheduling policy says; `tiers.py` keeps their KV while they are off it, in files of
the pools of `buffers.py`; `sharing.py` lets those that begin alike compute that once;
`dispatcher.py` knows all cores by name and picks one for a request.
"""
