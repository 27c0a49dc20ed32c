"""Tools that come with AIOS: each module has a few, which `aios.tools.tool` declares.

The kernel finds them here by itself, and runs them in a sandbox. They import nothing of ours but
`aios` and each other, and large libraries only when they are called.
"""
