"""What runs in the endpoints' process: the clients of providers, one module for each.

`__main__.py` carries out what the kernel asks (`protocol.py`) with an `endpoint.Endpoint` for each
core; `chatgpt.py` speaks to whatever is compatible with OpenAI's interface, `claude.py` to
Anthropic's, both by the connections of `transport.py`. `apikey.py` finds keys, which the kernel
never sees.
"""
