"""`roobench` and `python -m roobench`: the command line, from any folder.

The modules `bench` and `methods` are in a folder that only this process looks into. It looks there first, so that a
user's own modules of these names neither hide them nor are hidden by them.
"""

import sys
from pathlib import Path


def main() -> int:
    """Run one command; returns the exit status."""
    here = Path(__file__).parent
    sys.path.insert(0, str(here if (here / "bench").is_dir() else here.parent))  # installed, or in a checkout
    try:
        from bench.cli import main

        return main()
    except KeyboardInterrupt:  # so early that `bench.cli.main` could not catch it
        return 130


if __name__ == "__main__":
    sys.exit(main())
