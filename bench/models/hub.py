"""Files of Hugging Face's hub, in our cache; its errors in our words. huggingface_hub is imported where it is used."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from bench.errors import UserError
from bench.files import NO_SPACE, NO_WRITE, cache_root, first_line, writing
from bench.progress import Log

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
HUB_GGUF = re.compile(rf"({HUB_ID.pattern}):([\w./-]+\.gguf)", re.IGNORECASE)


def fetch_folder(name: str, files: Sequence[str], log: Log = print, revision: str | None = None) -> Path:
    """Return the snapshot of a hub repository with some of its files, from the cache if it is there.

    Raises:
        UserError: it cannot be fetched.

    """
    from huggingface_hub import errors, snapshot_download

    where = cache_root() / "hub"
    options: dict[str, Any] = {"cache_dir": where, "allow_patterns": list(files)}
    options |= {"revision": revision} if revision else {}
    with writing(where):
        try:
            with contextlib.suppress(errors.LocalEntryNotFoundError):
                folder = Path(snapshot_download(name, local_files_only=True, **options))
                if any((folder / file).is_file() for file in files):
                    return folder
            log(f"downloading {name}")
            return Path(snapshot_download(name, **options))
        except failures() as error:
            raise_error(name, revision, error, "weights")


def failures() -> tuple[Any, ...]:
    """Return what a fetch may raise: OSError and the exceptions of the HTTP library among them."""
    from huggingface_hub import errors

    return (ValueError, *errors.HfHubHTTPError.__bases__)


def raise_error(name: str, revision: str | None, error: Exception, what: str = "model") -> NoReturn:
    """Raise a UserError for a fetch that failed; errors of the disk are raised again as they are."""
    from huggingface_hub import errors

    if getattr(error, "errno", None) in NO_SPACE | NO_WRITE:
        raise error  # from the disk, not the hub
    reason, remedy = f"it cannot be reached ({first_line(error)})", "connect to the network or give a local folder"
    if isinstance(error, errors.GatedRepoError):  # a subclass of RepositoryNotFoundError, so checked first
        reason, remedy = "it is gated", "ask for access on its page and log in with `hf auth login`"
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason, remedy = "no such folder or public model", "check the spelling, or log in with `hf auth login`"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason, remedy = f"it has no revision {revision!r}", "give one of its branches, tags or commits, or none"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        reason = "it is not in the cache and the network cannot be reached"
    elif isinstance(error, ValueError):
        reason, remedy = f"no such folder, nor a possible id ({first_line(error)})", "check the spelling"
    raise UserError(f"cannot fetch the {what} {name!r}: {reason}; {remedy}") from error
