"""Another commit of this checkout (or of a plug-in's), with an environment that it can run in."""

from __future__ import annotations

import contextlib
import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from bench.errors import UserError
from bench.files import SOURCES, cache_root
from bench.gate.protocol import PROTOCOL
from bench.progress import Log

ROOT = SOURCES
REQUIREMENTS = "requirements.txt"
CACHED = "environments"  # of bases that pin other packages
_PROTOCOL_FILE = "bench/gate/protocol.py"
_FETCHED = "give a branch, tag or commit that is fetched here"


@dataclass(frozen=True)
class Checkout:
    """Code to run."""

    folder: str  # where the bench is
    python: str
    commit: str = ""  # of what is gated
    paths: tuple[str, ...] = ()  # looked through for modules first: a plug-in's


def here(plugin: Path | None) -> Checkout:
    """The code at hand; of a plug-in, its commit."""
    if plugin is None:
        return Checkout(str(ROOT), sys.executable)
    commit = _git(plugin, "rev-parse", "HEAD", why=f"--plugin {plugin}")
    return Checkout(str(ROOT), sys.executable, commit, _paths(plugin))


@contextlib.contextmanager
def checked_out(revision: str, plugin: Path | None, log: Log) -> Iterator[Checkout]:
    """`revision` in a worktree of its own, gone afterwards: of this bench, or of the plug-in in the folder `plugin`.

    A bench's environment is this one where it pins the same packages; a plug-in at any commit runs in this one.

    Raises:
        UserError: no such revision, no git, its gate speaks another protocol, or its packages cannot be installed.

    """
    if plugin is None and not (ROOT / ".git").exists():
        raise UserError(
            f"--base {revision}: Roobench is here without its history: gate in a clone of it, or name the repository "
            "of a method with --plugin"
        )
    repository = plugin or ROOT
    if plugin is not None:
        _git(plugin, "rev-parse", "--git-dir", why=f"--plugin {plugin}", remedy="give a folder in a git repository")
    commit = _git(repository, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", why=f"--base {revision}")
    with tempfile.TemporaryDirectory(prefix="roobench-gate-") as temporary:
        folder = Path(temporary) / "base"
        adding = ("worktree", "add", "--quiet", "--detach", str(folder), commit)
        _git(repository, *adding, why=f"--base {revision}", remedy=f"check that {temporary} can hold a checkout")
        try:
            if plugin is None:
                _check_protocol(folder, revision)
                yield Checkout(str(folder), _python(folder, log), commit)
            else:
                top = _git(repository, "rev-parse", "--show-toplevel", why=f"--plugin {plugin}")
                inside = plugin.resolve().relative_to(Path(top).resolve())
                yield Checkout(str(ROOT), sys.executable, commit, _paths(folder / inside))
        finally:
            removing = ["git", "-C", str(repository), "worktree", "remove", "--force", str(folder)]
            subprocess.run(removing, capture_output=True, check=False)


def _check_protocol(folder: Path, revision: str) -> None:
    """Refuse a commit whose gate does not understand ours, before anything of it is started."""
    file = folder / _PROTOCOL_FILE
    found = re.search(r"^PROTOCOL = (\d+)$", file.read_text(encoding="utf-8"), re.MULTILINE) if file.is_file() else None
    if found is None or int(found[1]) != PROTOCOL:
        theirs = f"speaks protocol {found[1]} of the gate" if found else "is older than the gate"
        since = _git(
            ROOT, "log", "--format=%h", f"-SPROTOCOL = {PROTOCOL}", "--", _PROTOCOL_FILE, why=f"--base {revision}"
        ).split()
        oldest = f"{since[-1]} or a later commit" if since else "a later commit"
        raise UserError(f"--base {revision} {theirs}, and this checkout speaks protocol {PROTOCOL}: give {oldest}")


def _paths(plugin: Path) -> tuple[str, ...]:
    """Where a plug-in's modules lie: at the top or under src/."""
    return tuple(str(path.absolute()) for path in (plugin / "src", plugin) if path.is_dir())


def _git(repository: Path, *arguments: str, why: str, remedy: str = _FETCHED) -> str:
    try:
        done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=True)
    except OSError as error:
        raise UserError(f"{why}: git cannot be run ({error.strerror}): install it, or gate without --base") from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"{repository} has no such revision"
        raise UserError(f"{why}: {said}; {remedy}") from error
    return done.stdout.strip()


def _python(folder: Path, log: Log) -> str:
    """An interpreter with the packages that the commit pins."""
    ours, theirs = (_content(place / REQUIREMENTS) for place in (ROOT, folder))
    if ours == theirs:
        return sys.executable
    told = f"{sys.version} {sys.prefix}".encode() + theirs
    environment = cache_root() / CACHED / hashlib.sha256(told).hexdigest()[:16]
    environment.parent.mkdir(parents=True, exist_ok=True)
    python, ready = environment / "bin" / "python", environment / ".complete"
    with FileLock(f"{environment}.lock"):
        if ready.exists():
            return str(python)
        log(f"base pins other packages: installing them into {environment}, once (some minutes)")
        steps = (
            [sys.executable, "-m", "venv", "--clear", str(environment)],
            [str(python), "-m", "pip", "install", "--quiet", "-r", str(folder / REQUIREMENTS)],
        )
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise UserError(f"the packages that base pins cannot be installed ({said}): see {REQUIREMENTS} there")
        ready.touch()
    return str(python)


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""
