"""Names to folders: nothing here needs a network, except the slow tests on a machine without the default model."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import filter_repo_objects

from bench.errors import UserError
from bench.models import checkpoints
from bench.models.checkpoints import DEFAULT_MODEL, Checkpoint, clean_cache, iter_weights, list_cache, resolve
from tests.fakes import leftovers

WORDS = ["<unk>", "a", "kangaroo", "hops"]


@pytest.fixture
def tiny():
    """A random Llama with a tied head: 8-wide, one layer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), tie_word_embeddings=True, **sizes))


@pytest.fixture
def folder(tmp_path, tiny):
    """The tiny model and a word tokenizer in Hugging Face's layout."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path / "tiny")
    tiny.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def at(folder: Path) -> Checkpoint:
    return Checkpoint(folder.name, folder, "", None)


# --- local folders ---------------------------------------------------------------------------------------------------


def test_local_folder_gives_config_tokenizer_and_every_stored_weight(cache, folder, tiny):
    checkpoint = resolve(str(folder))
    assert (checkpoint.name, checkpoint.folder, checkpoint.revision) == ("tiny", folder.resolve(), None)
    assert checkpoints.load_config(checkpoint).hidden_size == 8
    assert checkpoints.load_tokenizer(checkpoint)("a kangaroo hops")["input_ids"] == [1, 2, 3]
    expected = {name: tensor for name, tensor in tiny.state_dict().items() if name != "lm_head.weight"}
    weights = dict(iter_weights(checkpoint))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert not cache.exists()


def test_weights_that_lie_there_twice_are_read_once(folder):
    names = [name for name, _ in iter_weights(at(folder))]
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    torch.save({}, folder / "pytorch_model.bin")
    assert [name for name, _ in iter_weights(at(folder))] == names


def test_digest_of_a_local_folder_follows_contents_and_names(cache, folder):
    first = resolve(str(folder)).sha256
    assert resolve(str(folder)).sha256 == first
    weights = folder / "model.safetensors"
    times = weights.stat()
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))  # a user's files are never judged by their times
    assert resolve(str(folder)).sha256 != first
    weights.write_bytes(data)
    weights.rename(folder / "model-1.safetensors")
    assert resolve(str(folder)).sha256 != first
    assert not (folder / "roobench.json").exists()


def test_folder_without_config_is_refused(cache, tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        resolve(str(tmp_path))


def test_revision_of_a_folder_is_refused_rather_than_ignored(cache, folder):
    with pytest.raises(UserError, match="'v2'"):
        resolve(str(folder), "v2")
    with pytest.raises(UserError, match="'v2'"):
        resolve("default", "v2")


def test_truncated_safetensors_are_a_user_error(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors: it is incomplete"):
        list(iter_weights(at(folder)))


def save_bin_shards(folder: Path, state: dict, **options) -> None:
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i, (name, tensor) in enumerate(state.items()):
        shard = f"pytorch_model-{i % 2 + 1:05d}-of-00002.bin"
        weight_map[name] = shard
        kept = torch.load(folder / shard) if (folder / shard).exists() else {}
        torch.save({**kept, name: tensor.clone()}, folder / shard, **options)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_bin_shards_are_read_in_both_formats(folder, tiny, zipped):
    save_bin_shards(folder, tiny.state_dict(), _use_new_zipfile_serialization=zipped)
    weights = dict(iter_weights(at(folder)))
    assert weights.keys() == tiny.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in tiny.state_dict().items())


def test_missing_and_truncated_shards_are_user_errors(cache, folder, tiny):
    save_bin_shards(folder, tiny.state_dict())
    shard = folder / "pytorch_model-00002-of-00002.bin"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(UserError, match=shard.name):
        list(iter_weights(at(folder)))
    shard.unlink()
    with pytest.raises(UserError, match=f"1 of 2 weight files are missing, first .*{shard.name}"):
        resolve(str(folder))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_code_in_weights_is_never_run(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    torch.save({"w": Bomb(tmp_path / "exploded")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="could run code"):
        list(iter_weights(at(folder)))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {"w": "../outside.safetensors"}}'])
def test_damaged_or_escaping_index_is_a_user_error(folder, text):
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json is malformed"):
        list(iter_weights(at(folder)))


def test_code_of_a_model_folder_is_never_run(folder, tmp_path):
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}))
    with pytest.raises(UserError, match="cannot load the configuration of tiny"):
        checkpoints.load_config(at(folder))
    assert not (tmp_path / "ran").exists()


def test_unreadable_tokenizer_is_a_user_error(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot load the tokenizer of tiny"):
        checkpoints.load_tokenizer(at(folder))


# --- names and the cache ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smolm2-135m-instuct", "SmolLM2", "defualt"])
def test_unknown_name_gets_a_suggestion_and_what_is_available(cache, name):
    with pytest.raises(UserError, match=r"did you mean '(smollm2-135m-instruct|default)'.*available here: smollm2"):
        resolve(name)


def test_empty_name_is_not_the_current_folder(cache, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="unknown model ''"):
        resolve("")


@pytest.mark.parametrize("name", ["default", "SmolLM2-135M-Instruct", "SMOLLM2-135m-instruct"])
def test_names_of_the_default_mean_one_checkpoint(fake_default, name):
    assert resolve(name).name == DEFAULT_MODEL


def test_cache_is_listed_and_cleaned_by_name_and_whole(cache, fake_default):
    assert list_cache() == []
    resolve("default")
    blob = cache / "hub" / "models--org--big-model" / "blobs" / "b"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(bytes(1000))
    hub, default = list_cache()
    assert (hub.name, hub.bytes, hub.path) == ("org/big-model", 1000, blob.parents[1])
    assert default.name == DEFAULT_MODEL
    assert default.bytes == sum(path.stat().st_size for path in default.path.iterdir())
    with pytest.raises(UserError, match=r"'org/big-modle'.*did you mean 'org/big-model'.*it holds: org/big-model"):
        clean_cache(["default", "org/big-modle"])
    assert list_cache() == [hub, default]
    assert clean_cache(["DEFAULT"]) == default.bytes
    assert list_cache() == [hub]
    assert clean_cache() == 1000
    assert leftovers(cache) == []


def test_unfinished_work_of_a_killed_process_is_listed_and_cleaned(cache):
    partial = cache / "models" / f".partial-{DEFAULT_MODEL}"
    partial.mkdir(parents=True)
    (partial / "half.whl").write_bytes(bytes(77))
    assert [(entry.name, entry.bytes) for entry in list_cache()] == [(DEFAULT_MODEL, 77)]
    assert clean_cache() == 77
    assert not partial.exists()


def test_importing_checkpoints_loads_no_heavy_library():
    code = (
        "import sys, bench.models.checkpoints; print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    root = Path(checkpoints.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- the hub ---------------------------------------------------------------------------------------------------------


class FakeHub:
    """`snapshot_download` of one repository: honours the patterns, remembers whether it was online."""

    def __init__(self, source: Path):
        self.source, self.online, self.calls = source, True, []

    def __call__(self, repo_id, *, revision, cache_dir, local_files_only, allow_patterns, ignore_patterns):
        snapshot = Path(cache_dir) / f"models--{repo_id.replace('/', '--')}" / "snapshots" / (revision or "c0ffee")
        self.calls.append("cache" if local_files_only else "network")
        if local_files_only or not self.online:
            if not snapshot.exists():
                raise hub_errors.LocalEntryNotFoundError("not cached")
            return str(snapshot)
        names = [path.relative_to(self.source).as_posix() for path in self.source.rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.source / name, snapshot / name)
        return str(snapshot)


@pytest.fixture
def hub(cache, folder, monkeypatch):
    for code in ("modeling_evil.py", "vocab.py"):
        (folder / code).write_text("raise SystemExit")
    (folder / "model-original").mkdir()
    (folder / "model-original" / "again.safetensors").write_bytes(b"the same weights again")
    fake = FakeHub(folder)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
    return fake


def test_hub_model_is_fetched_without_code_then_found_without_a_network(hub, tiny):
    checkpoint = resolve("org/tiny")
    assert (checkpoint.name, checkpoint.revision) == ("org/tiny", "c0ffee")
    assert set(leftovers(checkpoint.folder)) - {"roobench.json"} == {
        path.name for path in hub.source.glob("*.*") if path.suffix != ".py"
    }
    assert torch.equal(dict(iter_weights(checkpoint))["model.norm.weight"], tiny.model.norm.weight)
    hub.online, hub.calls = False, []
    assert resolve("org/tiny") == checkpoint
    assert hub.calls == ["cache"]
    assert [entry.name for entry in list_cache()] == ["org/tiny"]


def test_hub_model_without_safetensors_comes_as_bin(hub, tiny):
    save_bin_shards(hub.source, tiny.state_dict())
    checkpoint = resolve("org/tiny", "v1")
    assert checkpoint.revision == "v1"
    assert dict(iter_weights(checkpoint)).keys() == tiny.state_dict().keys()


def test_interrupted_hub_download_is_taken_up_again(hub):
    snapshot = Path(resolve("org/tiny").folder)
    (snapshot / "roobench.json").unlink()
    (snapshot / "tokenizer.json").unlink()
    resolve("org/tiny")
    assert (snapshot / "tokenizer.json").exists()


def test_hub_repository_of_gguf_files_alone_says_how_to_name_one(hub):
    (hub.source / "config.json").unlink()
    with pytest.raises(UserError, match=r"org/tiny has no config\.json: .* give org/tiny:FILE\.gguf"):
        resolve("org/tiny")


REPLY = types.SimpleNamespace(headers={}, request=None, status_code=404)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (hub_errors.LocalEntryNotFoundError("no"), "not in the cache and the network cannot be reached; connect"),
        (hub_errors.OfflineModeIsEnabled("offline mode is on"), r"cannot be reached \(offline mode is on\); connect"),
        (hub_errors.GatedRepoError("403", response=REPLY), "gated; ask for access on its page and log in"),
        (hub_errors.RepositoryNotFoundError("404", response=REPLY), "no such folder or public model; check"),
        (hub_errors.RevisionNotFoundError("404", response=REPLY), "no revision 'v9'; give one of its branches"),
        (hub_errors.HfHubHTTPError("503 busy", response=REPLY), r"cannot be reached \(503 busy\)"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left in .*ROOBENCH_CACHE"),
    ],
)
def test_hub_failures_name_model_reason_and_remedy(cache, monkeypatch, error, told):
    def snapshot_download(*args, local_files_only, **options):
        raise hub_errors.LocalEntryNotFoundError("not cached") if local_files_only else error

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=told) as caught:
        resolve("org/tiny", "v9", log=lambda line: None)
    assert "'org/tiny'" in str(caught.value) or "space" in told
    assert "\n" not in str(caught.value)


def test_impossible_hub_id_is_a_user_error(cache):
    with pytest.raises(UserError, match=r"'a--b/c'.*check the spelling"):
        resolve("a--b/c")
