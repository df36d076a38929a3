"""`python -m fwm_py`: the command line."""

import sys

from fwm_py.cli import main

if __name__ == "__main__":
    sys.exit(main())
