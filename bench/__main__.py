"""`python -m bench`: the same as run_bench.py, wherever the package is installed."""

import sys

from bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
