"""The one exception that a user is meant to see."""

from __future__ import annotations


class UserError(Exception):
    """Something a user can cause and mend: one sentence with the value, the reason and the remedy.

    Caught once, in `bench.cli`, which prints it without a traceback and exits with status 2.
    """
