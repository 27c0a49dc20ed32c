"""`python -m aiosd` is the daemon."""

import sys

from aiosd.main import main

sys.exit(main())
