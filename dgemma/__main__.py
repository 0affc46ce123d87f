"""`python -m dgemma` is the command `dgemma`."""

import sys

from dgemma.cli.main import main

sys.exit(main())
