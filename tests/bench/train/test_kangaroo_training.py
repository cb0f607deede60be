"""`train kangaroo` from the command to a run with its weights, on a tiny model."""

from __future__ import annotations

import json
import re
import shutil
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file

from bench.cli import main
from bench.errors import UserError
from bench.models import checkpoints, conversation_files
from bench.train import conversations, loop, packed, prompts, training
from bench.train.conversations import Conversations
from bench.train.journal import Journal
from bench.train.writer import Recipe
from methods.kangaroo import training as kangaroo_training
from tests.tiny import files_of, records, run_bench

EXIT = 1


@dataclass(frozen=True)
class Short(Recipe):
    batch: int = 12
    length: int = 168
    answer_tokens: int = 40


FLAGS = ["--tokens", "200", "--epochs", "1", "--draft-vocab", "0", "--decontaminate", "mini"]
KANGAROO = ["kangaroo", "--exit-layer", str(EXIT), *FLAGS]


pytestmark = pytest.mark.usefixtures("short_prompts")


@pytest.fixture
def train(setting, monkeypatch, tmp_path):
    """Train on a few short conversations; returns the exit status."""
    monkeypatch.setattr(training, "Recipe", Short)
    out = tmp_path / "adapter"

    def call(*flags: str, model=setting.model) -> int:
        return main(["train", *KANGAROO, "--model", str(model), "--out", str(out), *flags])

    call.out = out
    return call


@pytest.fixture
def no_work(monkeypatch):
    """Fail if a conversation is begun."""
    monkeypatch.setattr(conversations, "make", None)


def no_network(flag: str):
    raise UserError(f"cannot be downloaded: give {flag} FILE")


def last_error(capsys) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


# --- from the command to a run ---------------------------------------------------------------------------------------


# Table 2's, for a target of 48 channels, 80 in its feed-forward blocks, 272 tokens; by architecture.
PAPERS = ("paper", "paper-own-head", "paper-layer", "paper-mlp")
PARAMETERS = {
    "feedback": 6 * 48**2 + 96,
    "paper": 4 * 48**2 + 96,
    "paper-own-head": 4 * 48**2 + 96 + 272 * 48,
    "paper-layer": 4 * 48**2 + 96 + 3 * 48 * 80 + 48,
    "paper-mlp": 2 * 48**2 + 96 + 272 * 48,
}


@pytest.mark.parametrize(("architecture", "parameters"), PARAMETERS.items())
def test_trained_weights_run_losslessly_and_draft_well(train, setting, capsys, architecture, parameters):
    assert train("--epochs", "4", "--architecture", architecture) == 0
    assert sorted(path.name for path in train.out.iterdir()) == [
        "README.md",
        "adapter.safetensors",
        "config.json",
        "scores.json",
    ]
    assert str(train.out / "adapter.safetensors") in capsys.readouterr().out
    config = json.loads((train.out / "config.json").read_text())
    assert (config["hidden_size"], config["exit_layer"], config["draft_vocab"]) == (48, EXIT, 0)
    ffn = {"paper-layer": 80, "paper-mlp": 48}.get(architecture, 0)
    assert (config["feedback"], config["ffn"]) == (architecture == "feedback", ffn)
    assert ("knobs" in config) == (architecture == "feedback")
    label = f"kangaroo:weights={train.out},stop=threshold,threshold=0"
    assert run_bench(setting.model, setting.questions, setting.out, "--method", label) == 0
    run, turns = records(setting.out)
    assert run.methods[label].extra_parameters == parameters
    mine = [turn for turn in turns if turn.method == label]
    assert {turn.audit.verdict for turn in mine} == {"identical"}
    assert sum(sum(turn.per_step_accepted) for turn in mine) > 0


def test_card_says_where_the_weights_come_from(train, cache, monkeypatch):
    monkeypatch.setattr("bench.questions.fetch_official", no_network)
    assert train("--seed", "7", "--decontaminate", "official") == 0
    card = (train.out / "README.md").read_text()
    (path,) = cache.rglob("*.jsonl")
    made = Conversations.of(Journal(path).read()).drawn(200, seed=7)
    assert f"architecture feedback, exit layer {EXIT}, draft vocabulary whole" in card
    assert "with mini (48 questions, sha256 " in card
    assert "not checked, as not available: official" in card
    assert "seed 7" in card
    assert f"{len(made.lengths)} conversations of {len(made.tokens):,} tokens" in card
    assert f"of which the target chose {made.answer_tokens:,} " in card
    shares = {kind: int(percent) for percent, kind in re.findall(r"(\d+)% (\w+)", card)}
    for i, kind in enumerate(prompts.KINDS):
        own = int(made.keep((made.kinds == i).tolist()).answer_tokens)
        assert shares[kind] == pytest.approx(100 * own / made.answer_tokens, abs=0.56)  # rounded twice
    header, _, row = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("|")]
    assert header[:9] == ["epoch", "loss", "held_out_loss", "agreement", *(f"accept_{w}" for w in range(2, 7))]
    assert 0 < len(header[9:]) == len(set(header[9:]) & set(prompts.KINDS))
    assert len(row) == len(header)


def test_conversations_and_features_are_made_once_for_one_model(train, setting, tmp_path, monkeypatch):
    made, computed = [], []
    write, states = conversations.Writer.run, loop._states
    monkeypatch.setattr(conversations.Writer, "run", lambda self, bar: made.append(1) or write(self, bar))
    monkeypatch.setattr(loop, "_states", lambda *given: computed.append(1) or states(*given))
    assert train() == 0
    assert len(computed) == 1
    written = len(made)
    first = load_file(train.out / "adapter.safetensors")
    assert train("--replace") == 0
    assert (len(made), len(computed)) == (written, 1)
    again = load_file(train.out / "adapter.safetensors")
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = shutil.copytree(setting.model, tmp_path / "elsewhere" / setting.model.name)
    weights = load_file(other / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].flip(0).contiguous()
    from safetensors.torch import save_file

    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert train("--replace", model=other) == 0  # another model of the same name
    assert len(made) > written
    assert len(computed) == 2


def test_conversations_may_be_packed_with_the_project_and_are_then_used(train, setting, cache, monkeypatch, capsys):
    monkeypatch.setattr(conversation_files, "FOLDER", setting.out.parent / "packed")
    model = ["--model", str(setting.model)]
    assert main(["train", "conversations", *model, "--tokens", "200"]) == 0
    assert not conversation_files.FOLDER.exists()
    assert main(["train", "collect", *model, "--decontaminate", "mini"]) == 0
    (path,) = conversation_files.FOLDER.rglob("*.npz")
    assert str(path) in capsys.readouterr().out
    made = packed.load(checkpoints.resolve(str(setting.model), log=print))
    assert made.answer_tokens >= 200
    assert main(["train", "collect", *model, "--decontaminate", "mini"]) == 0  # there is nothing more to pack
    assert list(conversation_files.FOLDER.rglob("*.npz")) == [path]
    monkeypatch.setattr(conversations, "make", None)  # from here on none is begun
    assert train("--tokens", "0") == 0
    assert f"{made.answer_tokens:,} answer tokens that come with the project" in capsys.readouterr().err
    assert f"{len(made.lengths)} conversations of {len(made.tokens):,} tokens" in (train.out / "README.md").read_text()
    assert train("--tokens", "150", "--replace") == 0  # some of them
    some = int(re.search(r"(\d+) of the \d+ answer tokens that come", capsys.readouterr().err)[1])
    assert 150 <= some < made.answer_tokens
    assert f"of which the target chose {some:,} " in (train.out / "README.md").read_text()


@pytest.mark.parametrize("name", ["paper-own-head", "paper-mlp"])
def test_other_architectures_do_not_replace_the_weights_that_runs_take(train, setting, monkeypatch, tmp_path, name):
    monkeypatch.setattr("bench.drafting.knobs.WEIGHTS_ROOT", tmp_path / "weights")
    assert main(["train", *KANGAROO, "--model", str(setting.model), "--architecture", name]) == 0
    assert [path.name for path in (tmp_path / "weights").glob("*/*")] == [f"kangaroo-{name}"]


def test_notes_written_by_hand_are_joined_to_the_card(train):
    train.out.mkdir()
    (train.out / "TRIED.md").write_text("\nNothing else helped.\n")
    assert train() == 0
    card = (train.out / "README.md").read_text()
    assert card.startswith("# Kangaroo adapter for ")
    assert card.endswith(" |\n\nNothing else helped.\n")
    assert (train.out / "TRIED.md").read_text() == "\nNothing else helped.\n"


@pytest.mark.parametrize("ranked", [16, 100])
def test_draft_vocabulary_is_ranked_far_enough_to_be_used(train, setting, monkeypatch, ranked):
    monkeypatch.setattr(training, "_RANKED", ranked)
    assert train("--draft-vocab", "64") == 0
    assert len(load_file(train.out / "adapter.safetensors")["token_ranking"]) == max(ranked, 64)
    label = f"kangaroo:weights={train.out}"
    assert run_bench(setting.model, setting.questions, setting.out, "--method", label, "--tasks", "qa") == 0
    assert records(setting.out)[0].methods[label].config["draft_vocab"] == 64


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["4", "99"])
def test_exit_layer_beyond_the_model_is_told_before_any_work(train, no_work, capsys, layer):
    assert train("--exit-layer", layer) == 2
    assert f"--exit-layer {layer} must be in 1..3 for " in last_error(capsys)
    assert not train.out.exists()


def test_output_that_cannot_be_written_is_told_before_the_model_is_read(train, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "load", None)
    (tmp_path / "file").write_text("")
    assert train("--out", str(tmp_path / "file" / "out")) == 2
    assert "Not a directory: give another path" in last_error(capsys)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 3_000_000))
    assert train() == 2
    assert "only 3 MB are free there" in last_error(capsys)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), "safetensors"])
def test_disk_that_is_full_in_the_end_leaves_earlier_weights_alone(train, monkeypatch, capsys, error):
    from safetensors import SafetensorError

    train.out.mkdir()
    for name in ("config.json", "scores.json"):
        (train.out / name).write_text("earlier")

    def save(tensors, path):
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)") if error == "safetensors" else error

    monkeypatch.setattr(
        kangaroo_training, "save_adapter", lambda folder, *given: save(given, folder / "adapter.safetensors")
    )
    assert train("--replace") == 2
    assert "No space left on device" in last_error(capsys)
    assert files_of(train.out) == {"config.json": b"earlier", "scores.json": b"earlier"}
    assert len(list(train.out.iterdir())) == 2


def test_interrupted_training_writes_no_weights(train, monkeypatch, capsys):
    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "fit", interrupted)
    assert train() == 130
    assert not train.out.exists()
    assert capsys.readouterr().err.endswith("interrupted\n")
