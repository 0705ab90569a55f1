"""`python -m rnnjit`: the command line."""

import sys

from rnnjit.cli import main

if __name__ == "__main__":
    sys.exit(main())
