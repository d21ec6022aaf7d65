#!/usr/bin/env python
"""`normdet bench` by its familiar name."""

from normdet.lab.bench import main

if __name__ == "__main__":
    main()
