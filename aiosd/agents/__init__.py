"""The agents and tools that come with AIOS, under one name wherever they lie.

An installed wheel has them in this directory. In a checkout they are in `agents` at its top.
"""

from pathlib import Path

if not Path(__file__).with_name("tools").is_dir():
    __path__.append(str(Path(__file__).parents[2] / "agents"))
