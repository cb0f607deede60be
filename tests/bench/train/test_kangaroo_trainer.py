"""Kangaroo's trainer: ranking, start, loss, scores and calibration, each worked out another way."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from bench.drafting.stopping import CALIBRATED_AT, Calibration
from bench.drafting.trained import round_to_half
from bench.train import conversations, loop, prompts, training
from bench.train.conversations import Conversations
from methods.kangaroo import training as kangaroo_training
from methods.kangaroo.adapter import Adapter, AdapterConfig, Stored, load_adapter
from methods.kangaroo.training import AdapterTrainer, KangarooTraining
from tests.bench.train.test_kangaroo_training import EXIT, PAPERS, Short

pytestmark = pytest.mark.usefixtures("short_prompts")

# --- ranking, start, loss and scores ---------------------------------------------------------------------------------


def test_tokens_are_ranked_by_how_often_the_target_chose_them():
    tokens = torch.tensor([5, 2, 2, 7, 5, 5, 2, 7, 7, 7, 1, 1], dtype=torch.int32)
    chosen = torch.tensor([0, 1, 1, 0, 1, 1, 0, 0, 0, 1, 0, 0], dtype=torch.bool)
    made = Conversations(tokens, chosen, torch.tensor([6, 6]), torch.zeros(2), torch.zeros(2))
    # 2 and 5 twice, 7 once; the others never, in their own order.
    assert training.rank_tokens(made, vocab=9).tolist() == [2, 5, 7, 0, 1, 3, 4, 6, 8]
    assert training.rank_tokens(made, vocab=9, most=3).tolist() == [2, 5, 7]


@pytest.fixture(scope="module")
def material(tiny_model, tiny_decoder, tiny_tokenizer, tmp_path_factory):
    """A target, its conversations, their features."""
    from bench.models.chat import ChatFormat

    target = tiny_decoder(*tiny_model("tied", True))
    folder = tmp_path_factory.mktemp("material")
    made = conversations.make(target, ChatFormat(tiny_tokenizer), frozenset({258}), Short(tokens=900), folder)
    return target, made, loop.features(target, made, folder / "features", [EXIT])


def trainer_of(material, **settings) -> AdapterTrainer:
    target, made, found = material
    config = KangarooTraining(exit_layer=EXIT, **{"draft_vocab": 0, "epochs": 3, "batch": 4, **settings})
    return AdapterTrainer(target, config, found, made, training.rank_tokens(made, target.config.vocab))


def shaken(trainer: AdapterTrainer) -> AdapterTrainer:
    """With weights of which every one matters."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainer.adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return trainer


def row(found, i: int):
    """Exit states, final states, tokens and taught positions of one conversation."""
    rows = slice(found.starts[i], found.starts[i] + int(found.lengths[i]))
    states = (found.rows(column, i) for column in (found.taps[EXIT], found.final_states))
    return *states, found.tokens[rows], found.taught[rows]


def earlier(states: torch.Tensor) -> torch.Tensor:
    return torch.cat((torch.zeros_like(states[:1]), states[:-1]))


def test_final_states_under_the_head_prefer_the_tokens_that_follow(material):
    target, made, found = material
    logits = torch.cat(list(found.final_states))[found.taught].float() @ target.head_weight.T
    of_chosen = logits.gather(1, made.tokens[made.chosen].long()[:, None])[:, 0]
    assert (logits.amax(-1) - of_chosen).max() < 0.01  # features are in half precision
    assert logits.std() > 0.5


@pytest.mark.parametrize(("architecture", "ffn"), [("paper", 20), *((name, 0) for name in PAPERS)])
@pytest.mark.parametrize("draft_vocab", [0, 40])
def test_paper_adapters_begin_as_the_logit_lens(material, architecture, ffn, draft_vocab):
    target, _, found = material
    batch = found.batch([3])
    trainer = trainer_of(material, architecture=architecture, ffn=ffn, draft_vocab=draft_vocab)
    (chain,) = trainer.chains(batch, batch.taught, 1)
    exits, _, _, taught = row(found, 3)
    torch.testing.assert_close(chain.logits, target.logits(exits)[taught][:, trainer.draft_ids])


@pytest.mark.parametrize("most", [512, 9])
def test_feedback_adapter_begins_as_the_best_linear_guess(material, monkeypatch, most):
    monkeypatch.setattr(kangaroo_training, "REGRESSION", most)
    target, _, found = material
    trainer = trainer_of(material, architecture="feedback", ffn=20)
    inputs, outputs = [], []
    for i in trainer.train_on[:most]:
        exits, finals, _, taught = row(found, i)
        inputs.append(torch.cat((exits, earlier(finals)), dim=1)[taught].double())
        outputs.append((finals / target.norm)[taught].double())
    x, y = torch.cat(inputs), torch.cat(outputs)
    # Ridge regression as least squares: one more row for every weight, which wants it to be zero.
    ridge = (0.01 * (x**2).sum(0).mean()).sqrt() * torch.eye(96, dtype=torch.float64)
    solution = torch.linalg.lstsq(torch.cat((x, ridge)), torch.cat((y, torch.zeros(96, 48)))).solution
    torch.testing.assert_close(trainer.adapter.input.weight.detach(), solution.T.float(), rtol=1e-4, atol=1e-5)
    exits, finals, _, taught = row(found, trainer.held_out[0])
    guess = torch.cat((exits, earlier(finals)), dim=1) @ solution.float()
    batch = found.batch(trainer.held_out[:1])
    (chain,) = trainer.chains(batch, batch.taught, 1)
    torch.testing.assert_close(chain.logits, target.logits(guess)[taught], rtol=1e-3, atol=1e-3)


def entropy(
    state: torch.Tensor, final: torch.Tensor, head: torch.Tensor, draft_head: torch.Tensor | None = None
) -> float:
    q = (head if draft_head is None else draft_head) @ state
    p, log_q = (head @ final).softmax(-1), q.log_softmax(-1)
    return -float((p @ log_q).detach())


@pytest.mark.parametrize(("draft_vocab", "teach"), [(0, "answers"), (40, "answers"), (40, "all")])
@pytest.mark.parametrize(
    ("architecture", "ffn", "unroll"),
    # The paper's are not unrolled.
    [("paper", 20, 3), ("feedback", 0, 1), ("feedback", 20, 1), *((name, 0, 1) for name in PAPERS)],
)
def test_loss_is_the_soft_cross_entropy_over_the_draft_vocabulary(
    material, draft_vocab, teach, architecture, ffn, unroll
):
    target, _, found = material
    settings = {"architecture": architecture, "ffn": ffn, "unroll": unroll, "teach": teach}
    trainer = shaken(trainer_of(material, draft_vocab=draft_vocab, **settings))
    assert sorted(trainer.draft_ids.tolist()) == sorted(trainer.ranking[: draft_vocab or None].tolist())
    head = target.head_weight[trainer.draft_ids]
    own = trainer.adapter.head
    assert (own is not None) == (architecture in ("paper-own-head", "paper-mlp"))
    losses = []
    for i in (4, 0):
        exits, finals, _, taught = row(found, i)
        before = earlier(finals)[None] if architecture == "feedback" else None
        states = trainer.adapter(exits[None], before=before)[0]
        positions = range(len(taught) - 1) if teach == "all" else taught.nonzero()[:, 0]
        losses += [entropy(states[t], finals[t], head, head if own is None else own.weight) for t in positions]
    assert float(trainer.loss([4, 0]).detach()) == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@pytest.mark.parametrize(("draft_vocab", "teach"), [(0, "answers"), (40, "answers"), (0, "all")])
def test_later_drafts_count_where_those_before_them_hit(material, draft_vocab, teach):
    target, _, found = material
    trainer = trainer_of(material, draft_vocab=draft_vocab, architecture="feedback", unroll=2, teach=teach)
    head = target.head_weight[trainer.draft_ids]
    firsts, seconds, missed = [], [], 0
    for i in (4, 0, 7):
        exits, finals, tokens, taught = row(found, i)
        first, second = (states[0] for states in trainer.adapter.unrolled(exits[None], finals[None], 2))
        if teach == "all":
            taught = torch.arange(len(tokens)) < len(tokens) - 1
        for t in taught.nonzero()[:, 0].tolist():
            firsts.append(entropy(first[t], finals[t], head))
            hit = bool(trainer.draft_ids[(head @ first[t]).argmax()] == tokens[t + 1])
            if hit and t + 1 < len(tokens) and taught[t + 1]:
                seconds.append(entropy(second[t + 1], finals[t + 1], head))
            missed += not hit
    assert len(seconds) > 5
    assert missed > 5
    expected = (sum(firsts) + sum(seconds)) / len(firsts)
    assert float(trainer.loss([4, 0, 7]).detach()) == pytest.approx(expected, rel=1e-4)


def chains_of(material, trainer: AdapterTrainer, rows: list[int]) -> list[list[tuple[float, bool]]]:
    """(confidence, hit) of each chain's drafts over the target's own text; the trainer's adapter is the logit lens."""
    target, _, found = material
    chains = []
    for i in rows:
        exits, _, tokens, taught = row(found, i)
        best = (target.final_norm(exits) @ target.head_weight[trainer.draft_ids].T).softmax(-1).max(-1)
        drafts = trainer.draft_ids[best.indices].tolist()
        for t in taught.nonzero()[:, 0].tolist():
            chain: list[tuple[float, bool]] = []
            while len(chain) < 6 and taught[t] and all(hit for _, hit in chain):
                chain.append((float(best.values[t]), drafts[t] == int(tokens[t + 1])))
                t += 1
            chains.append(chain)
    return chains


@pytest.mark.parametrize("draft_vocab", [0, 40])
def test_scores_are_those_of_drafting_over_the_targets_own_text(material, draft_vocab):
    _, made, found = material
    trainer = trainer_of(material, architecture="paper", draft_vocab=draft_vocab)
    rows = list(range(len(found.lengths)))[:11]
    scores = trainer.scores(rows)
    chains = chains_of(material, trainer, rows)
    assert max(map(len, chains)) > 2

    def accepted(chains, w: int) -> float:
        tried = [chain[w][1] for chain in chains if len(chain) > w]
        return sum(tried) / max(1, len(tried))

    assert 0 < scores["agreement"] < 1
    names = ["agreement", *(f"accept_{w}" for w in range(2, 7))]
    assert [scores[name] for name in names] == pytest.approx([accepted(chains, w) for w in range(6)])
    assert scores["held_out_loss"] == pytest.approx(float(trainer.loss(rows).detach()), rel=1e-5)
    kinds = {i: prompts.KINDS[made.kinds[i]] for i in rows}
    for kind in set(kinds.values()):
        own = chains_of(material, trainer, [i for i in rows if kinds[i] == kind])
        assert scores[kind] == pytest.approx(accepted(own, 0))
    assert set(scores) == {"held_out_loss", *names, *kinds.values()}


# --- calibration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draft_vocab", [0, 40])
def test_calibration_is_over_every_draft_of_every_chain(material, monkeypatch, draft_vocab):
    trainer = trainer_of(material, architecture="paper", draft_vocab=draft_vocab)
    given = []

    def spy(confidences, outcomes):
        given.append((torch.cat(list(confidences)), torch.cat(list(outcomes)).bool()))
        return CALIBRATED_AT

    monkeypatch.setattr("bench.train.chains.monotone", spy)
    rows = [0, 3, 4, 5, 7, 8, 9, 10, 11]
    trainer.calibrate(rows)
    chains = chains_of(material, trainer, rows)
    accepted = [draft for chain in chains for draft in chain]
    following = [(before, hit) for chain in chains for (before, _), (_, hit) in pairwise(chain)]
    assert len(following) > 10
    for (confidences, outcomes), expected in zip(given, (accepted, following), strict=True):
        for outcome in (True, False):
            found = confidences[outcomes == outcome].sort().values.tolist()
            assert found == pytest.approx(sorted(c for c, hit in expected if hit == outcome), rel=1e-4)


@pytest.mark.parametrize("architecture", ["feedback", "paper"])
def test_calibration_never_falls(material, architecture):
    _, _, found = material
    calibration = trainer_of(material, architecture=architecture).calibrate(range(len(found.lengths)))
    for curve in (calibration.accepted, calibration.following):
        assert len(curve) == 21
        assert list(curve) == sorted(curve)
        assert 0 <= curve[0] < curve[-1] <= 1


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draft_vocab", [0, 40])
@pytest.mark.parametrize(
    ("architecture", "unroll"), [("feedback", 1), ("feedback", 3), *((name, 1) for name in PAPERS)]
)
def test_training_lowers_the_loss(material, architecture, unroll, draft_vocab):
    settings = {"architecture": architecture, "unroll": unroll, "learning_rate": 5e-3, "epochs": 12}
    trainer = trainer_of(material, draft_vocab=draft_vocab, **settings)
    before = trainer.scores(trainer.train_on)
    history = trainer.fit()
    after = trainer.scores(trainer.train_on)
    assert [row["epoch"] for row in history] == list(range(1, 13))
    assert after["held_out_loss"] < before["held_out_loss"]
    assert after["agreement"] > before["agreement"]
    if unroll == 1:  # else more drafts are counted later
        assert history[-1]["loss"] < history[0]["loss"]
    assert not set(trainer.held_out) & set(trainer.train_on)


@pytest.mark.parametrize(("architecture", "unroll", "later"), [("feedback", 3, 3), ("feedback", 1, 1), ("paper", 3, 1)])
def test_chains_are_unrolled_from_half_way_on(material, monkeypatch, architecture, unroll, later):
    trainer = trainer_of(material, architecture=architecture, unroll=unroll, epochs=3, batch=10)
    depths, drafts = [], trainer.drafts
    monkeypatch.setattr(trainer, "scores", lambda indices: {})
    monkeypatch.setattr(trainer, "drafts", lambda *given: depths.append(given[-1]) or drafts(*given))
    trainer.fit()
    steps = 3 * -(-len(trainer.train_on) // 10)
    assert depths == [1] * -(-steps // 2) + [later] * (steps // 2)


def test_knobs_stored_with_an_adapter_are_to_its_calibration(material):
    feedback, paper = (trainer_of(material, architecture=name) for name in ("feedback", "paper"))
    rising = Calibration((0.5,) * 21, (0.0,) * 4 + (0.3,) * 17)
    assert feedback.knobs(rising) == {"gamma": 6, "stop": "gain", "threshold": 0.2}
    assert feedback.knobs(Calibration((0.5,) * 21, (0.0,) * 21))["threshold"] == 1.0
    assert paper.knobs(rising) == {}


def test_training_is_the_seeds(material):
    def weights(seed: int) -> torch.Tensor:
        trainer = trainer_of(material, seed=seed, epochs=1)
        trainer.fit()
        return torch.cat([p.detach().flatten() for p in trainer.adapter.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(weights(1), weights(1).half().float())  # scored as they are saved


@pytest.mark.parametrize(("architecture", "ffn"), [("feedback", 20), *((name, 0) for name in PAPERS)])
def test_saved_adapter_gives_the_trained_states(material, tmp_path, architecture, ffn):
    target, _, found = material
    trainer = shaken(trainer_of(material, draft_vocab=40, architecture=architecture, ffn=ffn))
    round_to_half(trainer.adapter)
    stored = Stored(trainer.ranking, trainer.calibrate(trainer.held_out), {"gamma": 3})
    kangaroo_training.save_adapter(tmp_path, trainer.adapter, stored)
    loaded, again = load_adapter(tmp_path, target)
    assert torch.equal(again.ranking.long(), stored.ranking)
    assert (again.calibration, again.knobs) == (stored.calibration, stored.knobs)
    assert loaded.config == trainer.adapter.config
    form = {"exit_layer": EXIT, "draft_vocab": 40, "feedback": architecture == "feedback"}
    form |= {
        "feedback": {"ffn": ffn},
        "paper": {},
        "paper-own-head": {"own_head": 40},
        "paper-layer": {"ffn": 80},
        "paper-mlp": {"attention": False, "ffn": 48, "gated": False, "own_head": 40},
    }[architecture]
    assert loaded.config == AdapterConfig(48, 6, target.config.norm_eps, **form)
    assert isinstance(loaded, Adapter)
    exits, finals, _, _ = row(found, 2)
    loaded.prepare(len(exits), target.device)
    states = [module(exits[None], before=earlier(finals)[None]) for module in (loaded, trainer.adapter)]
    torch.testing.assert_close(states[0], states[1].detach())
    assert (loaded.head is None) or torch.equal(loaded.head.weight, trainer.adapter.head.weight)
