"""Small services on files and folders: users' paths, digests, sizes, a full disk and an unwritable cache."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

SOURCES = Path(__file__).parents[1]  # where `bench` and `methods` are: a checkout, or a folder of an environment
IS_INSTALLED = not (SOURCES / "run_bench.py").is_file()  # what is written there would go with the next version
MOST_BYTES = 256_000_000  # of a file of the user's that is read whole
NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
NO_WRITE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


def user_path(text: str | Path) -> Path:
    """A path as users spell it, with `~` expanded; nothing needs to be there.

    Raises:
        UserError: it is empty or not UTF-8 text, it names an unknown user, or the system refuses it.

    """
    try:
        str(text).encode("utf-8")
        path = Path(text).expanduser() if str(text).startswith("~") else Path(text)
        if str(path).startswith("~"):  # ./~name, which pathlib shortens: nobody else is to expand it
            path = path.absolute()
        with contextlib.suppress(FileNotFoundError):
            path.lstat()
    except UnicodeError:
        reason = "it is not UTF-8 text: rename it"
    except RuntimeError:  # of expanduser
        reason = f"there is no such user's home: write ./{text} for a name that begins with ~, or the whole path"
    except (OSError, ValueError) as error:  # too long, below a file, not ours to see; a null byte
        reason = f"{getattr(error, 'strerror', None) or error}: give another path"
    else:
        if str(text):
            return path
        reason = "it is empty: give a path, or leave it out"
    raise UserError(f"cannot use the path {str(text)!r}: {reason}")


def user_file(text: str | Path) -> Path:
    """The file of that path, which must be there.

    Raises:
        UserError: it is not, or it is a folder, or as `user_path`.

    """
    path = user_path(text)
    if not path.is_file() and not path.is_fifo() and not path.is_char_device():  # pipes of the shell are read as well
        reason = "it is a folder" if path.is_dir() else "no such file"
        raise UserError(f"cannot read {path}: {reason}; give the path of a file")
    return path


def read_bounded(path: Path) -> bytes:
    """The content of a file or pipe of the user's, of MOST_BYTES at most: devices such as /dev/zero never end.

    Raises:
        OSError: it cannot be read, or has more.

    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {MOST_BYTES / 1e6:g} MB")
    return content


def existing(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def check_writable(folder: Path, flag: str = "--out") -> None:
    """Find out before an hour of work whether files can be made in `folder`, which may not exist yet.

    Raises:
        UserError: they cannot; `flag` chooses another.

    """
    try:
        with tempfile.TemporaryFile(dir=existing(folder)):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {folder}: {reason}; choose another folder with {flag}") from error


def check_output(path: Path | None, flag: str) -> None:
    """The same for a file, if one was asked for.

    Raises:
        UserError: it cannot be written.

    """
    if path is not None:
        if path.is_dir():
            raise UserError(f"{flag} {path} is a folder: give the path of a file")
        check_writable(path.parent, flag)


def cache_root() -> Path:
    """The folder for everything downloaded or built: $ROOBENCH_CACHE or ~/.cache/roobench. It may not exist yet."""
    given = os.environ.get("ROOBENCH_CACHE")
    try:
        return user_path(given or "~/.cache/roobench").absolute()
    except UserError as error:
        raise UserError(f"{error}; set ROOBENCH_CACHE to a folder for downloads") from error


def sha256(path: Path) -> str:
    """The digest of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`; 0 if it does not exist. The hub's links to its blobs count as links."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # an installer's temporary files come and go meanwhile
                total += Path(parent, name).lstat().st_size
    return total


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, which it becomes once all is written: nobody sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, which appears once it is whole, with the permissions that the user's umask leaves."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(tensors, temporary, metadata)  # for its owner alone
        temporary.chmod(mode)


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
            size = f"{shutil.disk_usage(existing(folder)).free / 1e9:.2f} GB free"
            size += f", {needed_bytes / 1e9:.2f} GB needed" if needed_bytes else ""
            remedy = "free some, or set ROOBENCH_CACHE to a folder on a larger disk"
            raise UserError(f"no space left in {folder} ({size}): {remedy}") from error
        if code in NO_WRITE:
            remedy = "set ROOBENCH_CACHE to a folder that you can write to"
            raise UserError(f"cannot write to the cache {folder} ({first_line(error)}): {remedy}") from error
        raise


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
