"""`python -m fledge` is the same as the installed command."""

import sys

from fledge.cli import main

sys.exit(main())
