"""`python -m tfdeep` is the command `tfdeep`."""

import sys

from tfdeep.cli import main

sys.exit(main())
