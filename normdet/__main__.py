"""`python -m normdet` is `normdet`."""

import sys

from normdet.cli import main

if __name__ == "__main__":
    sys.exit(main())
