"""`python -m bench`: the same as run_bench.py, wherever the package is installed."""

import sys

if __name__ == "__main__":
    try:
        from bench.cli import main

        status = main()
    except KeyboardInterrupt:  # so early that `main` could not catch it
        status = 130
    sys.exit(status)
