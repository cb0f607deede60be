"""Compare speculative decoding methods on your own device: `python run_bench.py --help`."""

import sys

if __name__ == "__main__":
    try:
        from bench.cli import main

        status = main()
    except KeyboardInterrupt:  # so early that `main` could not catch it
        status = 130
    sys.exit(status)
