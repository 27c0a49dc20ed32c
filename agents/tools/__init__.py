"""Tools that come with AIOS: each module has a few, which `aios.tools.tool` declares.

The kernel finds them by the entry points of group "aios.tools" and runs them in a sandbox. They
import nothing of ours but `aios`, and large libraries only when they are called.
"""
