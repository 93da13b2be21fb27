"""`python -m kdbusfs.ctl` is the command `kdbusctl`."""

import sys

from .main import main

sys.exit(main())
