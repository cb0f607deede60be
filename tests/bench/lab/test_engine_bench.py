"""bench-engine: every part is measured and told; shapes are those of the published models."""

from __future__ import annotations

import functools
import itertools
import json
import math

import pytest
import torch

import methods
from bench.cli import main
from bench.drafting.method import Answer, Peer, SpeculativeMethod
from bench.drafting.published import Published
from bench.drafting.sequence import Step
from bench.engine.decoder import Decoder
from bench.errors import UserError
from bench.figures.engine_record import read_engine
from bench.lab import engine_bench
from bench.models import shapes
from bench.run.contestants import Contestant
from methods.vanilla import Vanilla

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}


@pytest.fixture
def small(monkeypatch):
    """Little of everything, and one tiny shape more."""
    monkeypatch.setattr(engine_bench, "_BUFFER_BYTES", 1 << 20)
    monkeypatch.setattr(engine_bench, "Effort", functools.partial(engine_bench.Effort, rounds=1, new_tokens=8))
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)


def measured(tmp_path, *flags):
    """Status of the command and what it wrote."""
    file = tmp_path / "engine.json"
    status = main(["bench-engine", "--repeats", "1", "--context", "256", "--json", str(file), *flags])
    return status, json.loads(file.read_text()) if file.exists() else None


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vicuna-7b", 6_738_415_616),
        ("vicuna-13b", 13_015_864_320),
        ("llama-3.1-8b", 8_030_261_248),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_a_shape_has_the_published_number_of_parameters(name, parameters):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shapes.config_of(name))
    assert sum(weight.numel() for weight in model.parameters()) == parameters


def test_random_weights_are_the_same_for_us_and_for_transformers(small):
    config, device = shapes.config_of("tiny"), torch.device("cpu")
    weights = shapes.random_weights(config, torch.float32, device)
    decoder = Decoder.from_weights(config, weights, max_len=64)
    model = shapes.hf_model("tiny", torch.float32, device).eval()
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        expected = model(ids).logits[0]
    found = decoder.logits(decoder.run_layers(decoder.embed(ids), 0, decoder.new_cache())[0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert found.isfinite().all()
    assert found.std() > 1e-3


def test_every_part_is_measured_and_told(small, setting, tmp_path, capsys):
    flags = ["--model", str(setting.model), "--method", setting.kangaroo, "--peer", "hf-generate"]
    status, found = measured(tmp_path, *flags)
    assert status == 0
    assert list(found["answers"]) == ["vanilla", setting.kangaroo, "hf-generate"]
    assert found["answers"]["vanilla"]["over_vanilla"] == 1.0
    assert list(found["passes"])[:4] == ["1", "2", "3", "4"]
    assert found["random_weights"] is False
    assert list(found["drafters"]) == list(found["published"]) == ["eagle", "hydra", "kangaroo", "medusa"]
    assert found["vanilla"]["weight_bytes"] > 4 * found["parameters"] * 0.9
    times = [ms for part in ("passes", "drafts", "drafters", "head", "cache") for ms in found[part].values()]
    assert all(value > 0 for value in times)
    told = capsys.readouterr().out
    for words in ("of the read bandwidth", "forward pass over n tokens", "LM head of n tokens", "hf-generate"):
        assert words in told


def test_what_a_method_declares_as_published_is_timed(tiny_model, tiny_decoder, monkeypatch):
    class Announced(SpeculativeMethod):
        published = Published("a table", drafts=3, call=lambda target: lambda: None)

    class Unfitting(SpeculativeMethod):
        published = Published("a network that cannot have these sizes", drafts=3, call=lambda target: None)

    found = {"announced": Announced, "unfitting": Unfitting, "vanilla": Vanilla}
    monkeypatch.setattr(methods, "names", lambda: list(found))
    monkeypatch.setattr(methods, "load", found.__getitem__)
    assert engine_bench.published() == {"announced": Announced.published, "unfitting": Unfitting.published}
    assert list(engine_bench._drafters(tiny_decoder(*tiny_model("tied")), 1)) == ["announced"]


def test_a_shape_needs_no_model_and_has_peers(small, tmp_path, capsys):
    status, found = measured(tmp_path, "--shape", "tiny", "--peer", "hf-generate")
    assert status == 0
    assert found["model"] == "tiny"
    assert found["random_weights"] is True
    assert list(found["answers"]) == ["vanilla", "hf-generate"]
    assert "tiny with random weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--shape", "vicuna-7"], "unknown shape 'vicuna-7', did you mean 'vicuna-7b'?"),
        (
            ["--shape", "vicuna-7b", "--model", "default"],
            "--model: --shape takes the place of a model: give one of them",
        ),
        (["--context", "10"], "--context 10 is too small: at least 256"),
        (["--repeats", "0"], "--repeats 0 is too small: at least 1"),
    ],
)
def test_mistakes_are_told_in_a_sentence(flags, told, capsys):
    assert main(["bench-engine", *flags]) == 2
    assert told in capsys.readouterr().err


# --- answers in pairs ------------------------------------------------------------------------------------------------


@pytest.fixture
def scripted(tiny_model, tiny_decoder, tiny_checkpoint, monkeypatch):
    """(seconds of each answer by label, rounds) -> the answers of vanilla, a method and a peer; who decoded when."""
    decoder = tiny_decoder(*tiny_model("tied"))
    peer = TunedPeer(decoder, None, tiny_checkpoint("tied"))
    made = {"vanilla": Vanilla(decoder, Vanilla.Config()), "drafts": Vanilla(decoder, Vanilla.Config()), "peer": peer}
    order = []

    def measure(seconds, rounds):
        left = {label: iter(own) for label, own in seconds.items()}

        def decode(method, prompt, limit, eos):
            label = next(name for name, own in made.items() if own is method)
            order.append(label)
            return Answer(list(range(limit)), 0.1, next(left[label]), [] if label == "peer" else [Step([1])] * 2)

        monkeypatch.setattr(engine_bench, "decode", decode)
        effort = engine_bench.Effort(rounds=rounds, new_tokens=9)
        return engine_bench._answers(decoder, [Contestant(*item) for item in made.items()], effort)

    return measure, order, peer


class TunedPeer(Peer):
    """A peer that has something to choose."""

    tuned = 0

    def tune(self, prompt):
        self.tuned += 1

    @property
    def notes(self):
        return {"tuned": self.tuned}

    def generate(self, prompt, limit, eos, sampler=None):
        raise AssertionError("its answers are scripted")


def test_each_answer_is_timed_next_to_one_of_vanilla_and_they_take_turns_at_being_first(scripted):
    measure, order, _ = scripted
    measure(dict.fromkeys(("vanilla", "drafts", "peer"), itertools.repeat(1.0)), 1)
    assert order == [
        *("vanilla", "drafts", "vanilla", "peer", "vanilla"),
        *("vanilla", "vanilla", "drafts", "vanilla", "peer"),
    ]


def test_a_ratio_is_of_the_answers_of_a_pair(scripted):
    """Vanilla becomes slower and slower, and the peer always takes twice the time of the answer next to it."""
    measure, _, peer = scripted
    times = [1.0, 1.1, 1.3, 1.6, 2.0, 2.5]  # of a round; the first warms up
    found = measure(
        {
            "vanilla": [second for time in times for second in (time, time / 4, time)],
            "drafts": [time / 8 for time in times],
            "peer": [2 * time for time in times],
        },
        5,
    )
    assert found["peer"]["over_vanilla"] == pytest.approx(0.5)
    assert found["drafts"]["over_vanilla"] == pytest.approx(2)
    assert found["peer"]["interval"] == pytest.approx((0.5, 0.5))
    assert found["peer"]["vanilla_tok_per_s"] == pytest.approx([8 / time for time in times[1:]])
    assert found["peer"]["tok_per_s"] == pytest.approx([4 / time for time in times[1:]])
    assert found["vanilla"]["over_vanilla"] == 1
    assert "interval" not in found["vanilla"]
    assert (found["peer"]["notes"], peer.tuned) == ({"tuned": 1}, 1)


def test_uneven_ratios_have_an_interval_around_their_geometric_mean(scripted):
    measure, _, _ = scripted
    slower = [1.0, 1.8, 2.0, 2.2, 2.1, 1.9]
    seconds = {"vanilla": itertools.repeat(1.0), "drafts": itertools.repeat(1.0), "peer": slower}
    found = measure(seconds, 5)["peer"]
    assert found["over_vanilla"] == pytest.approx(1 / math.prod(slower[1:]) ** 0.2)
    assert 1 / 2.4 < found["interval"][0] < found["over_vanilla"] < found["interval"][1] < 1 / 1.7
    seconds |= {"peer": slower}
    assert measure(seconds, 2)["peer"]["interval"] is None


def test_a_peer_that_answers_all_at_once_is_told_apart(scripted):
    measure, _, _ = scripted
    seconds = {"vanilla": itertools.repeat(1.0), "drafts": itertools.repeat(1.0), "peer": itertools.repeat(0.0)}
    with pytest.raises(UserError, match="peer gives its answer all at once, so that its decoding cannot be timed"):
        measure(seconds, 2)


def test_the_plot_is_next_to_the_json_and_must_not_take_its_place(small, tmp_path, capsys):
    status, found = measured(tmp_path, "--shape", "tiny", "--peer", "none")
    assert status == 0
    assert (tmp_path / "engine.png").read_bytes().startswith(b"\x89PNG")
    assert "engine.png" in capsys.readouterr().out
    assert set(found["shares"]) == {"passes", "products"}
    assert list(found["passes"]) == list(found["products"]) == list(found["shares"]["passes"])
    assert read_engine(tmp_path / "engine.json")["operations"] == found["operations"]
    assert main(["bench-engine", "--shape", "tiny", "--json", str(tmp_path / "engine.png")]) == 2
    assert "has the name of the plot" in capsys.readouterr().err
