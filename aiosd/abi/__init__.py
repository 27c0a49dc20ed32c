"""The contract between the kernel and everything that calls it.

`table.py` lists every system call; the other files hold the calls by group and the records they
answer with; `wire.py` is the frame format. Nothing here imports anything else of ours.
"""

from typing import Final

LEVEL: Final = 2
"""The ABI level this tree speaks: grows by one with each release that adds calls or fields."""
