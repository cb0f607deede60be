"""`train medusa` from the command to a run with its weights, and its loss, scores and ranks worked out by hand."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from bench.cli import main
from bench.drafting.tree_choice import MISS
from bench.train import loop, training
from methods.medusa.training import HeadsTrainer, MedusaTraining
from tests.bench.train.test_kangaroo_training import FLAGS, Short
from tests.tiny import records, run_bench

HEADS = 3


pytestmark = pytest.mark.usefixtures("short_prompts")


@pytest.fixture
def train(setting, monkeypatch, tmp_path):
    """Train on a few short conversations; returns the exit status."""
    monkeypatch.setattr(training, "Recipe", Short)
    out = tmp_path / "heads"

    def call(*flags: str) -> int:
        return main(["train", "medusa", "--model", str(setting.model), *FLAGS, "--out", str(out), *flags])

    call.out = out
    return call


@pytest.mark.parametrize(
    ("flags", "parameters"),
    [
        ([], 3 * (3 * 48**2 + 48)),
        (["--own-lm-heads", "--architecture", "paper"], 3 * (48**2 + 48 + 272 * 48)),
    ],
    ids=["ours", "Medusa-1"],
)
def test_trained_heads_run_losslessly_and_draft(train, setting, flags, parameters):
    assert train("--heads", str(HEADS), "--epochs", "4", *flags) == 0
    assert sorted(path.name for path in train.out.iterdir()) == [
        "README.md",
        "config.json",
        "heads.safetensors",
        "scores.json",
    ]
    config = json.loads((train.out / "config.json").read_text())["heads"]
    assert (config["heads"], config["own_lm_heads"]) == (HEADS, "--own-lm-heads" in flags)
    labels = [f"medusa:weights={train.out},{tree}" for tree in ("tree=chain", "tree=0/1/0-0", "tree=auto")]
    methods = [flag for label in labels for flag in ("--method", label)]
    assert run_bench(setting.model, setting.questions, setting.out, *methods) == 0
    run, turns = records(setting.out)
    for label in labels:
        assert run.methods[label].extra_parameters == parameters
        mine = [turn for turn in turns if turn.method == label]
        assert {turn.audit.verdict for turn in mine} == {"identical"}
    assert sum(sum(turn.per_step_accepted) for turn in turns if turn.method == labels[1]) > 0
    assert "speedup" in run.methods[labels[2]].notes["predicted"]["tree"]


def test_card_and_stored_ranks_agree(train):
    """The share of first ranks that are right is the card's `agreement`, whatever the road to it."""
    assert train("--heads", str(HEADS)) == 0
    tensors = load_file(train.out / "heads.safetensors")
    first = tensors["ranks"][:, 0].tolist()
    ends = set((tensors["rank_lengths"].cumsum(0) - 1).tolist())  # an answer's last token has nothing behind it
    tried = [rank for place, rank in enumerate(first) if place not in ends]
    card = (train.out / "README.md").read_text()
    header, _, row = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("|")]
    shown = dict(zip(header, row, strict=True))
    assert float(shown["agreement"]) == pytest.approx(tried.count(0) / len(tried), abs=6e-4)
    assert float(shown["top_5"]) == pytest.approx(sum(rank < 5 for rank in tried) / len(tried), abs=6e-4)
    assert f"{HEADS} heads sharing the target's LM head" in card
    assert "head i (from 0) weighted 0.8^i" in card


@pytest.fixture
def material(setting, monkeypatch, tiny_model, tiny_decoder, tmp_path):
    """(target, conversations, features) of a few short conversations."""
    from bench.models import checkpoints
    from bench.models.chat import ChatFormat
    from bench.train import conversations

    config, model = tiny_model("tied")
    target = tiny_decoder(config, model)
    chat = ChatFormat(checkpoints.load_tokenizer(checkpoints.resolve(str(setting.model))))
    made = conversations.make(target, chat, frozenset(), Short(tokens=600), tmp_path)
    return target, made, loop.features(target, made, tmp_path / "features")


def trainer_of(material, **settings):
    target, made, found = material
    config = MedusaTraining(heads=HEADS, **{"draft_vocab": 0, "epochs": 1, "batch": 4, **settings})
    trainer = HeadsTrainer(target, config, found, made, training.rank_tokens(made, target.config.vocab))
    generator = torch.Generator().manual_seed(9)
    for parameter in trainer.heads.parameters():  # so that no part is zero
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return trainer


def by_hand(material, trainer, conversation):
    """(place, head, logits, true token, the target's state there) wherever the next head + 2 tokens are one answer."""
    target, _, found = material
    begin = found.starts[conversation]
    rows = slice(begin, begin + int(found.lengths[conversation]))
    states = found.rows(found.final_states, conversation)
    tokens, taught = found.tokens[rows], found.taught[rows].tolist()
    for place in range(len(tokens)):
        for head in range(HEADS):
            if not all(taught[place : place + head + 2]) or place + head + 2 >= len(tokens):
                continue
            x = states[place]
            if trainer.heads.input is not None:
                newest = target.final_norm(target.embedding[tokens[place + 1]])
                x = trainer.heads.input[head] @ torch.cat((x, newest))
            x = x + F.silu(trainer.heads.weight[head] @ x + trainer.heads.bias[head])
            own = trainer.heads.lm_heads
            lm_head = target.head_weight[trainer.draft_ids] if own is None else own[head]
            yield place, head, lm_head @ x, int(tokens[place + head + 2]), states[place + head + 1]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("architecture", "vocab"), [("newest", 0), ("newest", 40), ("paper", 0), ("paper", 40)])
def test_loss_is_the_weighted_cross_entropy_of_every_head(material, architecture, vocab, own):
    trainer = trainer_of(material, architecture=architecture, draft_vocab=vocab, own_lm_heads=own)
    target, _, found = material
    ids = trainer.draft_ids.tolist()
    total, count = 0.0, 0
    for conversation in (1, 4, 6):
        begin = found.starts[conversation]
        count += int(found.taught[begin : begin + int(found.lengths[conversation])].sum())
        for _, head, logits, token, state in by_hand(material, trainer, conversation):
            logs = logits.double().log_softmax(-1)
            if architecture == "newest":
                teacher = (target.head_weight[trainer.draft_ids] @ state).double().softmax(-1)
                total -= 0.8**head * float((teacher * logs).sum().detach())
            elif token in ids:
                total -= 0.8**head * float(logs[ids.index(token)].detach())
    assert float(trainer.loss([1, 4, 6]).detach()) == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("vocab", [0, 40])
def test_ranks_are_those_of_the_true_tokens(material, vocab):
    trainer = trainer_of(material, draft_vocab=vocab)
    _, made, found = material
    chosen = [2, 5, 7]
    record = trainer.record(chosen)
    assert record.fits()
    expected, kinds = [], []
    for conversation in chosen:
        begin = found.starts[conversation]
        taught = found.taught[begin : begin + int(found.lengths[conversation])].tolist()
        ranks = {place: [MISS] * HEADS for place, own in enumerate(taught) if own}
        for place, head, logits, token, _ in by_hand(material, trainer, conversation):
            order = trainer.draft_ids[logits.argsort(descending=True)].tolist()
            if token in order[:32]:
                ranks[place][head] = order.index(token)
        expected += list(ranks.values())
        runs = sum(own and not before for own, before in zip(taught, [False, *taught[:-1]], strict=True))
        kinds += [int(made.kinds[conversation])] * runs
    assert record.ranks.tolist() == expected
    assert record.kinds.tolist() == kinds
    assert record.lengths.sum() == len(expected)


def test_own_lm_heads_start_as_the_targets(material):
    trainer = trainer_of(material, own_lm_heads=True, architecture="paper")
    target = material[0]
    fresh = HeadsTrainer(target, trainer.config, trainer.found, trainer.made, trainer.ranking)
    for head in fresh.heads.lm_heads:
        assert torch.equal(head, target.head_weight[fresh.draft_ids])
    assert not fresh.heads.weight.any()  # so that, at first, every head says what the target does


def test_heads_that_read_the_newest_token_start_as_the_best_linear_guess(material):
    """By numpy's least squares, but for the slight regularisation."""
    import numpy as np

    trainer = trainer_of(material)
    target, _, found = material
    fresh = HeadsTrainer(target, trainer.config, trainer.found, trainer.made, trainer.ranking)
    for head in range(HEADS):
        x, y = [], []
        for conversation in fresh.train_on:
            begin = found.starts[conversation]
            rows = slice(begin, begin + int(found.lengths[conversation]))
            states = found.rows(found.final_states, conversation)
            tokens, taught = found.tokens[rows], found.taught[rows].tolist()
            for place in range(len(tokens) - head - 1):
                if all(taught[place : place + head + 2]):
                    x.append(torch.cat((states[place], target.final_norm(target.embedding[tokens[place + 1]]))))
                    y.append(states[place + head + 1])
        x, y = torch.stack(x).double().numpy(), torch.stack(y).double().numpy()
        ridge = 0.01 * (x.T @ x).diagonal().mean()
        expected = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y).T
        np.testing.assert_allclose(fresh.heads.input[head].detach().numpy(), expected, atol=1e-3)
