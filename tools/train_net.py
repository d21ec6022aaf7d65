#!/usr/bin/env python
"""`normdet train` under the name that detectron2's users know."""

import sys

from normdet.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
