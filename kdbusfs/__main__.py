"""`python -m kdbusfs` is the command `kdbusfs`."""

import sys

from kdbusfs.cli import main

sys.exit(main())
