#!/usr/bin/env python
"""Train by a LazyConfig, under the name that detectron2's users know; see configs/lazy."""

import sys

import normdet
from normdet.engine.lazy import main

if __name__ == "__main__":
    try:
        main()
    except normdet.NormdetError as error:
        sys.exit(f"error: {error}")
