"""Small services on files and folders: digests, sizes, and a full disk or an unwritable cache told in a sentence."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from bench.errors import UserError

NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
NO_WRITE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


def cache_root() -> Path:
    """The folder for everything downloaded or built: $ROOBENCH_CACHE or ~/.cache/roobench. It may not exist yet."""
    return Path(os.environ.get("ROOBENCH_CACHE") or "~/.cache/roobench").expanduser().absolute()


def sha256(path: Path) -> str:
    """The digest of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`; 0 if it does not exist. The hub's links into its blobs count as links."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # an installer's temporary files come and go meanwhile
                total += Path(parent, name).lstat().st_size
    return total


@contextlib.contextmanager
def writing(folder: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn a full disk or an unwritable cache into a UserError; other errors pass."""
    try:
        yield
    except Exception as error:
        code = getattr(error, "errno", None)
        if code is None and (said := re.search(r"\(os error (\d+)\)", str(error))):  # as safetensors says it
            code = int(said[1])
        if code in NO_SPACE:
            exists = next(path for path in (folder, *folder.parents) if path.exists())
            size = f"{shutil.disk_usage(exists).free / 1e9:.2f} GB free"
            size += f", {needed_bytes / 1e9:.2f} GB needed" if needed_bytes else ""
            remedy = "free some, or set ROOBENCH_CACHE to a folder on a larger disk"
            raise UserError(f"no space left in {folder} ({size}): {remedy}") from error
        if code in NO_WRITE:
            remedy = "set ROOBENCH_CACHE to a folder that you can write to"
            raise UserError(f"cannot write to the cache {folder} ({first_line(error)}): {remedy}") from error
        raise


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
