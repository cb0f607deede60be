"""Holds transformers back: what it prints while it reads a checkpoint is not for a reader of ours."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back transformers' bars and warnings about reading a checkpoint; after an error they are shown."""
    from transformers.utils import logging

    held, verbosity = io.StringIO(), logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(held):
            yield
    except BaseException:
        sys.stderr.write(held.getvalue())
        raise
    finally:
        logging.set_verbosity(verbosity)
