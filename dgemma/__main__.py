"""`python -m dgemma`: the command line."""

import sys

from dgemma.cli.main import main

sys.exit(main())
