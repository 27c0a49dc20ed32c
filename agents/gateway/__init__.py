"""The gateway: HTTP for programs that know nothing of AIOS, as a process of the kernel's own.

It holds no rights. The key of each request is an agent's credential, and what the request asks is
asked of the kernel as that agent. `__main__.py` begins it, `app.py` puts it together, and each
family of routes has a file of its own with a function `routes`.
"""
