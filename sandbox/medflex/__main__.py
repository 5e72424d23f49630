"""`python -m sandbox.medflex --help` tells."""

import sys

from .server import main

sys.exit(main())
