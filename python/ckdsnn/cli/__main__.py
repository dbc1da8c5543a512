"""`python -m ckdsnn.cli` is the command `ckdsnn`."""

import sys

from ckdsnn.cli import main

sys.exit(main())
