"""`python -m dgemma` is the command `dgemma`."""

import sys

from dgemma.cli.start import main

sys.exit(main())
