"""The trainers of EAGLE's heads on a tiny model: their start, drafts, losses and files."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from bench.cli import main
from bench.engine.cache import KVCache
from bench.models.chat import ChatFormat
from bench.train import conversations, loop, training
from methods.eagle.head import load_head
from methods.eagle.training import EagleTraining, HeadTrainer
from methods.eagle3.training import Eagle3Training, Head3Trainer
from tests.bench.train.test_kangaroo_training import FLAGS, Short
from tests.tiny import records, run_bench

pytestmark = pytest.mark.usefixtures("short_prompts")

TAPS = (1, 2)  # of 4 layers
FORMS = ("normed", "paper", "eagle3")


@pytest.fixture(scope="module")
def material(tiny_model, tiny_decoder, tiny_tokenizer, tmp_path_factory):
    """A target, its conversations, their features."""
    target = tiny_decoder(*tiny_model("tied", True))
    folder = tmp_path_factory.mktemp("material")
    made = conversations.make(target, ChatFormat(tiny_tokenizer), frozenset({258}), Short(tokens=900), folder)
    return target, made, loop.features(target, made, folder / "features", TAPS)


def trainer_of(material, form: str, **settings) -> HeadTrainer:
    target, made, found = material
    settings = {"draft_vocab": 0, "epochs": 3, "batch": 4, **settings}
    ranking = training.rank_tokens(made, target.config.vocab)
    if form == "eagle3":
        return Head3Trainer(target, Eagle3Training(**settings), found, made, ranking)
    return HeadTrainer(target, EagleTraining(architecture=form, **settings), found, made, ranking)


def shaken(trainer: HeadTrainer) -> HeadTrainer:
    """With weights of which every one matters."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return trainer


def row(found, i: int):
    """Final states, tapped states, tokens and taught positions of one conversation."""
    rows = slice(found.starts[i], found.starts[i] + int(found.lengths[i]))
    taps = torch.cat([found.rows(found.taps[layer], i) for layer in TAPS], dim=1)
    return found.rows(found.final_states, i), taps, found.tokens[rows], found.taught[rows]


def entropy(state: Tensor, final: Tensor, head: Tensor, own: Tensor | None = None) -> float:
    """Soft cross-entropy in float64."""
    q = (head if own is None else own).double() @ state.double()
    return -float(((head.double() @ final.double()).softmax(-1) @ q.log_softmax(-1)).detach())


def test_taps_are_a_low_a_middle_and_a_high_layer(material):
    for layers, expected in ((30, (2, 15, 27)), (32, (2, 16, 29)), (4, TAPS), (2, (1,)), (1, (1,))):
        target = type("Target", (), {"config": type("Config", (), {"layers": layers})})
        assert Head3Trainer.taps(Eagle3Training(), target) == expected
    assert HeadTrainer.taps(EagleTraining(), material[0]) == ()


# --- from the command to a run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "flags"), [("eagle", []), ("eagle", ["--architecture", "paper"]), ("eagle3", [])], ids=FORMS
)
def test_trained_heads_run_losslessly_and_draft(method, flags, setting, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(training, "Recipe", Short)
    out = tmp_path / "head"
    given = ["--model", str(setting.model), *FLAGS, "--epochs", "4", "--out", str(out)]
    assert main(["train", method, *given, *flags]) == 0
    assert capsys.readouterr().out.endswith(f" --model {setting.model} --method {method}:weights={out}\n")
    names = ["README.md", "config.json", "head.safetensors", "scores.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    config = json.loads((out / "config.json").read_text())
    assert (config["version"], config["output_norm"]) == (3 if method == "eagle3" else 1, not flags)
    assert config.get("knobs") == (None if flags else {"stop": "gain"})
    card = (out / "README.md").read_text()
    assert ("SmoothL1 of features + 0.1 soft cross-entropy" in card) == bool(flags)
    assert ("states after 1, 2 layers" in card) == (method == "eagle3")
    assert ("(from 0) weighted 0.8^w" in card) == (method == "eagle3")
    drafts = ("stop=threshold,threshold=0,beam=1", "stop=threshold,threshold=0", "tree=best,gamma=3,beam=3,nodes=8")
    labels = [f"{method}:weights={out},{knobs}" for knobs in drafts]
    asked = [flag for label in labels for flag in ("--method", label)]
    assert run_bench(setting.model, setting.questions, setting.out, *asked) == 0
    run, turns = records(setting.out)
    c = json.loads((setting.model / "config.json").read_text())
    d, inner, heads, kv_heads = (
        c[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    )
    wide = 2 if method == "eagle3" else 1
    layer = wide * d * (d + 2 * d // heads * kv_heads) + d * d + 3 * d * inner
    extra = 4 * d + 272 * d if method == "eagle3" else 2 * d if flags else 3 * d  # norms; LM head; fc's bias
    for label in labels:
        assert run.methods[label].extra_parameters == 2 * d * d + layer + extra
        mine = [turn for turn in turns if turn.method == label]
        assert {turn.audit.verdict for turn in mine} == {"identical"}
        assert sum(sum(turn.per_step_accepted) for turn in mine) > 0


# --- start -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("draft_vocab", [0, 40])
def test_heads_begin_as_the_best_linear_guess_of_the_next_state(material, form, draft_vocab):
    target, _, found = material
    trainer = trainer_of(material, form, draft_vocab=draft_vocab)
    scale = torch.ones_like(target.norm) if form == "paper" else target.norm

    def pairs(i: int) -> tuple[Tensor, Tensor, Tensor]:
        finals, taps, tokens, taught = row(found, i)
        read = taps[:-1] if form == "eagle3" else torch.cat((target.embedding[tokens[1:]], finals[:-1]), dim=1)
        return read, finals[1:], taught[1:]

    inputs, outputs = [], []
    for i in trainer.train_on:
        read, after, taught = pairs(i)
        inputs.append(read[taught].double())
        outputs.append((after / scale)[taught].double())
    x, y = torch.cat(inputs), torch.cat(outputs)
    # Ridge regression as least squares: one more row for every weight, which wants it to be zero.
    ridge = (0.01 * (x**2).sum(0)).sqrt().diag()
    solution = torch.linalg.lstsq(torch.cat((x, ridge)), torch.cat((y, torch.zeros(len(ridge), 48)))).solution
    torch.testing.assert_close(trainer.network.fc.weight.detach(), solution.T.float(), rtol=1e-3, atol=1e-4)
    batch = found.batch(trainer.held_out[:1])
    with torch.no_grad():
        (chain,) = trainer.chains(batch, batch.taught, 1)
    read, _, taught = pairs(trainer.held_out[0])
    guess = read @ solution.float()
    logits = guess @ target.head_weight.T if form == "paper" else target.logits(guess)
    torch.testing.assert_close(chain.logits, logits[taught][:, trainer.draft_ids], rtol=1e-3, atol=1e-3)


# --- drafts ----------------------------------------------------------------------------------------------------------


def test_the_feed_forward_block_is_as_wide_as_asked_or_the_targets(material):
    for asked, width in ((0, 80), (24, 24)):
        network = trainer_of(material, "normed", ffn=asked).network
        assert network.config.intermediate_size == width
        assert network.down.weight.shape == (48, width)


@pytest.mark.parametrize("form", FORMS)
def test_unrolled_drafts_are_those_of_a_loaded_head_step_by_step_on_its_cache(material, form, tmp_path):
    target, _, found = material
    trainer = shaken(trainer_of(material, form, draft_vocab=40))
    trainer.save(tmp_path)
    head, stored = load_head(tmp_path, target)
    assert torch.equal(stored.ranking.long(), trainer.ranking)
    assert stored.calibration == trainer.calibrate(trainer.held_out)
    assert head.config == trainer.network.config
    head.prepare(target)
    for name, weight in trainer.network.state_dict().items():
        assert torch.equal(weight.half().float(), head.state_dict()[name])
    trainer.network.load_state_dict(head.state_dict())  # files are in half precision
    depth = 3
    with torch.no_grad():
        unrolled = list(trainer.drafts(found.batch([3, 5]), depth))
    for place, i in enumerate((3, 5)):
        finals, taps, tokens, _ = row(found, i)
        embedded = target.embedding[tokens][None]
        features = head.join_taps((taps if form == "eagle3" else finals)[None])
        for begin in (1, 2, len(tokens) // 2, len(tokens) - depth):
            cache = KVCache(1, head.config.num_key_value_heads, head.config.head_dim, len(tokens), dtype=torch.float32)
            outputs = head(embedded[:, 1 : begin + 1], features[:, :begin], 0, cache)[:, -1:]
            for w in range(depth):
                at = begin + w
                states = head.head_states(outputs)[0, 0]
                torch.testing.assert_close(unrolled[w][place, at], states, rtol=1e-4, atol=1e-4)
                if w + 1 < depth:
                    outputs = head(embedded[:, at + 1 : at + 2], outputs, at, cache)


def test_nothing_is_drafted_without_a_feature(material):
    trainer = trainer_of(material, "normed", teach="all")
    batch = material[2].batch([2])
    assert trainer.start(batch)[0].tolist() == [False, *batch.inside[0, 1:].tolist()]


# --- loss ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("teach", ["answers", "all"])
@pytest.mark.parametrize("draft_vocab", [0, 40])
@pytest.mark.parametrize("form", FORMS)
def test_loss_by_hand(material, form, draft_vocab, teach):
    target, _, found = material
    trainer = trainer_of(material, form, draft_vocab=draft_vocab, teach=teach, unroll=3)
    trainer = shaken(trainer) if form != "normed" else trainer  # whose first drafts hit now and then
    trainer.done = 0.6
    head, own = target.head_weight[trainer.draft_ids], trainer.network.head
    assert (own is not None) == (form == "eagle3")
    total, count, later = 0.0, 0, 0
    for i in (4, 0):
        finals, _, tokens, taught = row(found, i)
        with torch.no_grad():
            drafts = [states[0] for states in trainer.drafts(found.batch([i]), 3)]
        if teach == "all":
            taught = torch.arange(len(tokens)) < len(tokens) - 1
        for begin in taught.nonzero()[:, 0].tolist():
            if not begin:
                continue
            count += 1
            for w in range(1 if form == "paper" else 3):
                at = begin + w
                if not (at < len(tokens) and taught[at]):
                    break
                state = drafts[w][at]
                loss = entropy(state, finals[at], head, None if own is None else own.weight)
                if form == "paper":
                    far = (state - finals[at]).abs().double()
                    loss = 0.1 * loss + float(torch.where(far < 1, far**2 / 2, far - 0.5).mean())
                total += (0.8**w if form == "eagle3" else 1) * loss
                later += w > 0
                hit = trainer.draft_ids[(head @ state).argmax()] == tokens[at + 1]
                if form == "normed" and not hit:
                    break
    assert later > 5 or form == "paper"
    with torch.no_grad():
        assert float(trainer.loss([4, 0])) == pytest.approx(total / count, rel=1e-4)


def test_published_training_has_noise_in_the_features_and_scores_do_not(material):
    trainer, batch = trainer_of(material, "paper"), material[2].batch([1])
    noise = trainer.features(batch) - batch.final_states
    assert 0.095 < float(noise.abs().max()) <= 0.1001
    assert abs(float(noise.mean())) < 0.01
    with torch.inference_mode():
        assert torch.equal(trainer.features(batch), batch.final_states)
    ours = trainer_of(material, "normed")
    assert torch.equal(ours.features(batch), batch.final_states)


@pytest.mark.parametrize(("form", "early"), [("normed", 1), ("paper", 1), ("eagle3", 3)])
def test_eagle_3_unrolls_from_the_first_step_on(material, monkeypatch, form, early):
    trainer = trainer_of(material, form, epochs=1, batch=10)
    depths, drafts = [], trainer.drafts
    monkeypatch.setattr(trainer, "scores", lambda indices: {})
    monkeypatch.setattr(trainer, "drafts", lambda *given: depths.append(given[-1]) or drafts(*given))
    trainer.fit()
    assert (depths[0], depths[-1]) == (early, 1 if form == "paper" else 3)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
def test_training_lowers_the_loss(material, form, precision):
    trainer = trainer_of(material, form, draft_vocab=40, epochs=8, learning_rate=5e-3, precision=precision)
    before = trainer.scores(trainer.train_on)
    history = trainer.fit()
    after = trainer.scores(trainer.train_on)
    assert len(history) == 8
    assert after["held_out_loss"] < before["held_out_loss"]
    assert after["agreement"] > before["agreement"]
    assert not set(trainer.held_out) & set(trainer.train_on)


def test_training_is_the_seeds(material):
    def weights(seed: int) -> Tensor:
        trainer = trainer_of(material, "paper", seed=seed, epochs=1)
        trainer.fit()
        return torch.cat([p.detach().flatten() for p in trainer.network.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
