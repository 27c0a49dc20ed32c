"""The shell of AIOS: one typer app with two doors, `aiosctl` (scripted) and `aiosh` (interactive).

Reading order: app.py (the doors), link.py (the way to the kernel), tables.py (how data is shown),
then one file per noun of commands. Of ours only `aios` and `aiosd.abi` are imported.
"""
