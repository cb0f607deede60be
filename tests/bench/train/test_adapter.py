"""`train kangaroo` from the command to a run with its weights, on a tiny model."""

from __future__ import annotations

import functools
import json
import shutil
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file

from bench.cli import main
from bench.config import TrainConfig
from bench.train import adapter, conversations, loop
from bench.train.adapter import AdapterTrainer, rank_tokens
from bench.train.conversations import Conversations, Recipe
from methods.kangaroo import Adapter, AdapterConfig, load_adapter
from tests.tiny import records, run_bench

EXIT = 1
RECIPE = functools.partial(Recipe, batch=12, length=160, user_tokens=6, long_user_tokens=9, answer_tokens=40)
FLAGS = ["--tokens", "200", "--epochs", "1", "--exit-layer", str(EXIT), "--draft-vocab", "0", "--decontaminate", "mini"]


@pytest.fixture
def train(setting, monkeypatch, tmp_path):
    """Train on a few short conversations; returns the exit status."""
    monkeypatch.setattr(adapter, "Recipe", RECIPE)
    out = tmp_path / "adapter"

    def call(*flags: str, model=setting.model) -> int:
        return main(["train", "kangaroo", "--model", str(model), *FLAGS, "--out", str(out), *flags])

    call.out = out
    return call


@pytest.fixture
def no_work(monkeypatch):
    """Fail if a conversation is begun."""
    monkeypatch.setattr(conversations, "make", None)


def last_error(capsys) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


# --- from the command to a run ---------------------------------------------------------------------------------------


def test_trained_weights_run_losslessly_and_draft_well(train, setting, capsys):
    assert train("--epochs", "4") == 0
    assert sorted(path.name for path in train.out.iterdir()) == ["README.md", "adapter.safetensors", "config.json"]
    assert str(train.out / "adapter.safetensors") in capsys.readouterr().out
    config = json.loads((train.out / "config.json").read_text())
    assert (config["hidden_size"], config["exit_layer"], config["draft_vocab"]) == (48, EXIT, 0)
    label = f"kangaroo:weights={train.out},threshold=0"
    assert run_bench(setting.model, setting.questions, setting.out, "--method", label) == 0
    run, turns = records(setting.out)
    assert run.methods[label].extra_parameters == 4 * 48**2 + 2 * 48
    mine = [turn for turn in turns if turn.method == label]
    assert {turn.audit.verdict for turn in mine} == {"identical"}
    assert sum(sum(turn.per_step_accepted) for turn in mine) > 0


def test_card_says_where_the_weights_come_from(train):
    assert train("--seed", "7", "--decontaminate", "absent.jsonl") == 0
    card = (train.out / "README.md").read_text()
    (row,) = [line for line in card.splitlines() if line.startswith("| 1 |")]
    assert f"exit layer {EXIT}, draft vocabulary whole" in card
    assert "with mini (48 questions, sha256 " in card
    assert "not checked, because not at hand: absent.jsonl" in card
    assert "seed 7" in card
    assert "12 conversations of 160 tokens" in card
    assert row.count("|") == 1 + 10  # epoch, loss, held-out loss, agreement, six positions


def test_conversations_and_features_are_made_once_for_one_model(train, setting, tmp_path, monkeypatch):
    made, computed = [], []
    write, states = conversations._Writer.run, loop._states
    monkeypatch.setattr(conversations._Writer, "run", lambda self, bar: made.append(1) or write(self, bar))
    monkeypatch.setattr(loop, "_states", lambda *given: computed.append(1) or states(*given))
    assert train() == 0
    assert (len(made), len(computed)) == (1, 1)
    first = load_file(train.out / "adapter.safetensors")
    assert train() == 0
    assert (len(made), len(computed)) == (1, 1)
    again = load_file(train.out / "adapter.safetensors")
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = shutil.copytree(setting.model, tmp_path / "elsewhere" / setting.model.name)
    weights = load_file(other / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].flip(0).contiguous()
    from safetensors.torch import save_file

    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert train(model=other) == 0  # another model of the same name
    assert (len(made), len(computed)) == (2, 2)


@pytest.mark.parametrize("ranked", [16, 100])
def test_draft_vocabulary_is_ranked_far_enough_to_be_used(train, setting, monkeypatch, ranked):
    monkeypatch.setattr(adapter, "_RANKED", ranked)
    assert train("--draft-vocab", "64") == 0
    assert len(load_file(train.out / "adapter.safetensors")["token_ranking"]) == max(ranked, 64)
    label = f"kangaroo:weights={train.out}"
    assert run_bench(setting.model, setting.questions, setting.out, "--method", label, "--tasks", "qa") == 0
    assert records(setting.out)[0].methods[label].config["draft_vocab"] == 64


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["4", "99"])
def test_exit_layer_beyond_the_model_is_told_before_any_work(train, no_work, capsys, layer):
    assert train("--exit-layer", layer) == 2
    assert f"--exit-layer {layer} must lie in 1..3 for " in last_error(capsys)
    assert not train.out.exists()


def test_output_that_cannot_be_written_is_told_before_the_model_is_read(train, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(adapter, "load_target", None)
    (tmp_path / "file").write_text("")
    assert train("--out", str(tmp_path / "file" / "out")) == 2
    assert last_error(capsys).startswith("error: cannot write ")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 3_000_000))
    assert train() == 2
    assert "only 3 MB are free there" in last_error(capsys)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), "safetensors"])
def test_disk_that_is_full_in_the_end_leaves_earlier_weights_alone(train, monkeypatch, capsys, error):
    from safetensors import SafetensorError

    train.out.mkdir()
    (train.out / "config.json").write_text("earlier")

    def save(tensors, path):
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)") if error == "safetensors" else error

    monkeypatch.setattr(adapter, "save_adapter", lambda folder, *given: save(given, folder / "adapter.safetensors"))
    assert train() == 2
    assert "No space left on device" in last_error(capsys)
    assert [(path.name, path.read_text()) for path in train.out.iterdir()] == [("config.json", "earlier")]


def test_interrupted_training_writes_no_weights(train, monkeypatch, capsys):
    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "fit", interrupted)
    assert train() == 130
    assert not train.out.exists()
    assert capsys.readouterr().err.endswith("interrupted\n")


# --- ranking, loss and scores ----------------------------------------------------------------------------------------


def test_tokens_are_ranked_by_how_often_the_target_chose_them():
    tokens = torch.tensor([[5, 2, 2, 7, 5, 5], [2, 7, 7, 7, 1, 1]], dtype=torch.int32)
    chosen = torch.tensor([[0, 1, 1, 0, 1, 1], [0, 0, 0, 1, 0, 0]], dtype=torch.bool)
    # 2 and 5 twice, 7 once; the others never, in their own order.
    assert rank_tokens(Conversations(tokens, chosen), vocab=9).tolist() == [2, 5, 7, 0, 1, 3, 4, 6, 8]
    assert rank_tokens(Conversations(tokens, chosen), vocab=9, most=3).tolist() == [2, 5, 7]


@pytest.fixture(scope="module")
def material(tiny_model, tiny_decoder, tiny_tokenizer, tmp_path_factory):
    """A target, its conversations, their features."""
    from bench.questions import ChatFormat

    target = tiny_decoder(*tiny_model("tied", True))
    folder = tmp_path_factory.mktemp("material")
    made = conversations.make(target, ChatFormat(tiny_tokenizer), frozenset({258}), RECIPE(tokens=1), folder)
    return target, made, loop.features(target, made, EXIT, folder / "features")


def trainer_of(material, **settings) -> AdapterTrainer:
    target, made, found = material
    config = TrainConfig(exit_layer=EXIT, **{"draft_vocab": 0, "epochs": 3, "batch": 4, **settings})
    return AdapterTrainer(target, config, found, rank_tokens(made, target.config.vocab))


def test_final_states_under_the_head_are_the_tokens_that_follow(material):
    target, made, found = material
    choices = (found.final_states.float() @ target.head_weight.T).argmax(-1)
    assert torch.equal(choices, made.tokens[:, 1:][made.chosen[:, 1:]].long())


def test_adapter_begins_as_the_logit_lens(material):
    target, _, found = material
    logits, _ = trainer_of(material)._logits([3])
    lens = target.logits(found.exit_states[3].float())
    torch.testing.assert_close(logits, lens[found.taught[3]])


@pytest.mark.parametrize("draft_vocab", [0, 40])
def test_training_lowers_the_loss_and_raises_the_held_out_agreement(material, draft_vocab):
    trainer = trainer_of(material, draft_vocab=draft_vocab, epochs=6)
    before = trainer.scores(trainer.held_out)
    history = trainer.fit(print)
    assert [row["epoch"] for row in history] == list(range(1, 7))
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["held_out_loss"] < before["held_out_loss"]
    assert history[-1]["agreement"] >= before["agreement"]
    assert not set(trainer.held_out) & set(trainer.train_on)


def test_loss_is_the_soft_cross_entropy_over_the_draft_vocabulary(material):
    target, _, found = material
    trainer = trainer_of(material, draft_vocab=40)
    assert len(trainer.draft_ids) == 40
    assert sorted(trainer.draft_ids.tolist()) == sorted(trainer.ranking[:40].tolist())
    pick = [4, 0]
    states = torch.cat([target.final_norm(found.exit_states[i].float())[found.taught[i]] for i in pick])
    offsets = [0, *found.taught.sum(1).cumsum(0).tolist()]
    teacher = torch.cat([found.final_states[offsets[i] : offsets[i + 1]] for i in pick]).float()
    head = target.head_weight[trainer.draft_ids]
    log_q, p = (states @ head.T).log_softmax(-1), (teacher @ head.T).softmax(-1)
    torch.testing.assert_close(trainer.loss(pick).detach(), -(p * log_q).sum(-1).mean())


def test_training_is_the_seeds(material):
    def weights(seed: int) -> torch.Tensor:
        trainer = trainer_of(material, seed=seed, epochs=1)
        trainer.fit(print)
        return torch.cat([p.detach().flatten() for p in trainer.adapter.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("draft_vocab", [0, 40])
def test_scores_are_those_of_drafting_over_the_targets_own_text(material, draft_vocab):
    target, made, found = material
    trainer = trainer_of(material, draft_vocab=draft_vocab)
    rows = [5, 2]
    matches = torch.zeros(len(rows), made.tokens.shape[1], dtype=torch.bool)
    for place, row in enumerate(rows):
        states = target.final_norm(found.exit_states[row].float())
        drafts = trainer.draft_ids[(states @ target.head_weight[trainer.draft_ids].T).argmax(-1)]
        matches[place, :-1] = drafts[:-1] == made.tokens[row, 1:]
    taught = found.taught[rows]
    matches &= taught
    scores = trainer.scores(rows)
    assert scores["agreement"] == pytest.approx(float(matches.sum() / taught.sum()))
    assert 0 < scores["agreement"] < 1
    expected = loop.acceptance_by_position(matches, taught, adapter.POSITIONS)
    assert [scores[f"accept_{w}"] for w in range(1, 7)] == pytest.approx(expected)
    assert scores["accept_1"] == pytest.approx(scores["agreement"])
    assert scores["held_out_loss"] > 0


def test_saved_adapter_gives_the_trained_states(material, tmp_path):
    target, _, found = material
    trainer = trainer_of(material, draft_vocab=40, epochs=1)
    trainer.fit(print)
    adapter.save_adapter(tmp_path, trainer.adapter, trainer.ranking)
    loaded, ranking = load_adapter(tmp_path, target)
    assert torch.equal(ranking.long(), trainer.ranking)
    assert loaded.config == AdapterConfig(48, 6, target.config.norm_eps, EXIT, 40)
    assert isinstance(loaded, Adapter)
    loaded.prepare(found.tokens.shape[1], target.device)
    states = found.exit_states[:1].float()
    torch.testing.assert_close(loaded(states), trainer.adapter(states).detach())
