"""`python -m aiosh` is aiosctl."""

from aiosh.app import main_ctl

if __name__ == "__main__":
    main_ctl()
