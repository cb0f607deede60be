"""EAGLE's and EAGLE-3's drafts against brute-force readings of the papers; their files, knobs and kernels."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import methods
from bench.drafting.loop import decode
from bench.drafting.stopping import CALIBRATED_AT
from bench.drafting.tree import tree_of
from bench.drafting.tree_files import read_tree
from bench.engine import MAX_DRAFTS
from bench.engine.kernels import native
from bench.engine.kernels.draft import DraftModel, Level
from bench.engine.places import Places
from bench.errors import UserError
from methods.eagle.drafting import network
from methods.eagle.knobs import EagleConfig
from methods.eagle.method import Eagle
from methods.eagle3.method import Eagle3, Eagle3Config
from tests.eagle_reference import PaperHead, Path, beam_paths, dynamic_tree, static_tree
from tests.methods.tiny_weights.eagle import RANKING
from tests.wide import D, make_faint, target_of, wide_config

LIMIT = 24
VERSIONS = {1: (Eagle, EagleConfig), 3: (Eagle3, Eagle3Config)}


class Reference:
    """What the papers draft after a text: everything from scratch for every path, in float64."""

    def __init__(self, model, folder, ids=None):
        self.model = model
        self.config = json.loads((folder / "config.json").read_text())
        self.paper = PaperHead({k: v.double() for k, v in load_file(folder / "head.safetensors").items()}, self.config)
        own = self.paper.w.get("lm_head.weight")
        self.ids = torch.arange(model.config.vocab_size) if ids is None else torch.tensor(ids)
        self.lm_head = model.lm_head.weight.double()[self.ids] if own is None else own

    @torch.inference_mode()
    def chances(self, context: list[int]):
        """Of what may follow paths of drafts after a text, whose last token the target has not processed."""
        hidden = self.model(torch.tensor([context[:-1]]), output_hidden_states=True).hidden_states
        hidden = [states[0].double() for states in hidden]
        features = hidden[-1] if self.paper.version == 1 else self.paper.features(self._taps(context[:-1]))
        embedding = self.model.model.embed_tokens.weight.double()
        embedded = embedding[torch.tensor(context[1:])]

        @functools.cache
        def after(path: Path) -> torch.Tensor:
            with torch.inference_mode():
                _, read = self.paper.follow(embedded, features, embedding[torch.tensor(path, dtype=torch.long)])
                scores = (self.lm_head @ read).log_softmax(-1)
                return torch.full((len(embedding),), -torch.inf, dtype=torch.float64).index_copy(0, self.ids, scores)

        return after

    def _taps(self, tokens: list[int]) -> list[torch.Tensor]:
        """States after so many layers, none under the final norm (which transformers puts on the last)."""
        states = []
        hook = self.model.model.norm.register_forward_pre_hook(lambda _, given: states.append(given[0]))
        hidden = self.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        hook.remove()
        every = [*hidden[:-1], *states]
        return [every[layer][0].double() for layer in self.config["taps"]]


def paths_of(draft) -> set[Path]:
    """The paths of a draft's nodes, as tokens."""
    paths: list[Path] = []
    for token, parent in zip(draft.tokens, draft.tree.parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    assert len(set(paths)) == len(paths)
    return set(paths)


def watched(method):
    """(context, budget, draft) of every step that the method will draft for."""
    seen, propose = [], method.propose

    def recording(sequences, budgets):
        drafts = propose(sequences, budgets)
        seen.append((list(sequences[0].context), budgets[0], drafts[0]))
        return drafts

    method.propose = recording
    return seen


SHAPES = {
    "chain": ({"beam": 1, "gamma": 3, "threshold": 0.0}, lambda p, room: beam_paths(p, 1, min(3, room), 24)),
    "beam": (
        {"beam": 3, "gamma": 4, "threshold": 0.0, "nodes": 10},
        lambda p, room: beam_paths(p, 3, min(4, room), 10),
    ),
    "static": ({"tree": "mc_sim_25"}, lambda p, room: static_tree(p, read_tree("mc_sim_25"), room)),
    "spelled": ({"tree": "0/2/0-1/2-0/2-0-0"}, lambda p, room: static_tree(p, read_tree("0/2/0-1/2-0/2-0-0"), room)),
    "best": (
        {"tree": "best", "beam": 4, "gamma": 4, "nodes": 13},
        lambda p, room: dynamic_tree(p, 4, min(4, room), 13),
    ),
    "best, few of many": (
        {"tree": "best", "beam": 5, "gamma": 3, "nodes": 6},
        lambda p, room: dynamic_tree(p, 5, min(3, room), 6),
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("knobs", "expected"), SHAPES.values(), ids=SHAPES)
def test_every_step_drafts_what_the_paper_says(
    knobs, expected, version, tiny_model, tiny_decoder, tiny_weights, hf_greedy, random_ids
):
    config, model = tiny_model("tied", faint=True)
    folder = tiny_weights("eagle", model, version=version)
    kind, settings = VERSIONS[version]
    method = kind(tiny_decoder(config, model), settings(weights=str(folder), **knobs))
    reference, accepted = Reference(model, folder), set()
    for prompt in (random_ids(12, seed=1), random_ids(1, seed=2)):
        seen = watched(method)
        answer = decode(method, prompt, LIMIT, frozenset())
        assert answer.token_ids == hf_greedy(model, prompt, LIMIT)
        assert len(seen) == len(answer.steps)
        for context, room, draft in seen:
            assert paths_of(draft) == expected(reference.chances(context), room)
        accepted |= {step.accepted for step in answer.steps}
    assert len(accepted) > 1, "the drafts are always right, or never: the test shows little"


def test_eagle_2s_tree_has_its_published_size(tiny_model, tiny_decoder, tiny_weights, random_ids):
    config, model = tiny_model("tied", faint=True)
    knobs = {**methods.declared("eagle").presets["paper2"], "weights": str(tiny_weights("eagle", model))}
    method = Eagle(tiny_decoder(config, model), EagleConfig(**knobs))
    seen = watched(method)
    decode(method, random_ids(12, seed=1), LIMIT, frozenset())
    context, room, draft = seen[0]
    assert (len(draft.tokens), draft.calls, method.widest) == (59, 6, 60)
    reference = Reference(model, tiny_weights("eagle", model))
    assert paths_of(draft) == dynamic_tree(reference.chances(context), 10, min(6, room), 59)


def test_eagle_1s_tree_is_the_published_one():
    depths = [len(path) for path in read_tree("mc_sim_25")]
    assert [depths.count(depth) for depth in range(1, 6)] == [4, 8, 8, 3, 2]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_cut_vocabulary_and_an_own_lm_head_draft_only_their_tokens(
    version, tiny_model, tiny_decoder, tiny_weights, random_ids
):
    config, model = tiny_model("tied", faint=True)
    own = {"own_head": 140, "draft_vocab": 140} if version == 3 else {}
    folder = tiny_weights("eagle", model, version=version, useful=False, ranking=RANKING, changes=own)
    kind, settings = VERSIONS[version]
    for size in (140, 90):
        knobs = {"draft_vocab": size, "tree": "best", "gamma": 2, "beam": 3, "nodes": 8}
        method = kind(tiny_decoder(config, model), settings(weights=str(folder), **knobs))
        seen = watched(method)
        decode(method, random_ids(12, seed=1), LIMIT, frozenset())
        reference = Reference(model, folder, RANKING[:size])
        reference.lm_head = reference.lm_head[:size]
        for context, room, draft in seen:
            assert paths_of(draft) == dynamic_tree(reference.chances(context), 3, min(2, room), 8)
        rows = 0 if version == 1 else size
        assert (
            method.extra_parameters
            == sum(
                value.numel()
                for name, value in reference.paper.w.items()
                if name not in ("lm_head.weight", "token_ranking")
            )
            + rows * 48
        )


def test_gain_draws_a_tree_by_cost(tiny_model, tiny_decoder, tiny_weights, hf_greedy, random_ids):
    config, model = tiny_model("tied", faint=True)
    changes = {
        "calibration": {"accepted": CALIBRATED_AT, "following": CALIBRATED_AT},
        "knobs": {"stop": "gain", "beam": 3},
    }
    folder = tiny_weights("eagle", model, changes=changes)
    prompt, counts = random_ids(12, seed=1), []
    for costs in ("0.0/0.01/1:1.0/32:1.2", "0.0/0.1/1:1.0/2:1.3/3:1.6/32:9.0", "0.0/3.0/1:1.0/32:9.0"):
        method = Eagle(tiny_decoder(config, model), EagleConfig(weights=str(folder), costs=costs))
        assert (method.config.stop, method.config.beam) == ("gain", 3)
        answer = decode(method, prompt, LIMIT, frozenset())
        assert answer.token_ids == hf_greedy(model, prompt, LIMIT)
        counts.append(sum(step.drafted for step in answer.steps))
    assert counts[0] > counts[1] > counts[2] == 0


def test_without_a_calibration_the_question_tells_what_drafts_are_worth(
    tiny_model, tiny_decoder, tiny_weights, hf_greedy, random_ids
):
    """So published heads draft by cost, too."""
    config, model = tiny_model("tied", faint=True)
    prompt, drafted = random_ids(12, seed=1), []
    for useful in (True, False):
        folder = tiny_weights("eagle", model, useful=useful)
        costs = "0.0/0.1/1:1.0/2:1.1/4:1.4/32:9.0"
        method = Eagle(tiny_decoder(config, model), EagleConfig(weights=str(folder), costs=costs))
        assert method.config.stop == "gain"
        answer = decode(method, prompt, 40, frozenset())
        assert answer.token_ids == hf_greedy(model, prompt, 40)
        drafted.append(sum(step.drafted for step in answer.steps))
    assert drafted[0] > drafted[1]


def test_a_head_of_the_other_version_is_sent_to_the_other_method(tiny_model, tiny_decoder, tiny_weights):
    config, model = tiny_model("tied")
    decoder = tiny_decoder(config, model)
    for version, (kind, settings) in VERSIONS.items():
        folder = tiny_weights("eagle", model, version=4 - version, useful=False)
        name = "eagle" if version == 3 else "eagle3"
        for act in (kind.check_weights, lambda knobs, target, kind=kind: kind(target, knobs)):
            with pytest.raises(UserError, match=rf"of version {4 - version}, .*: {name}:weights="):
                act(settings(weights=str(folder)), decoder)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("eagle:tree=oak", "tree=oak is neither grown, best"),
        ("eagle:tree=none", "tree=none has no drafts"),
        ("eagle:tree=best,stop=gain", "stop and threshold are for tree=grown"),
        ("eagle3:tree=0/1,threshold=0.5", "stop and threshold are for tree=grown"),
        ("eagle:tree=best,drafts=sampled", "drafts=sampled is for a chain"),
        ("eagle:beam=3,drafts=sampled", "drafts=sampled is for a chain"),
        ("eagle3:gamma=-1", "gamma=-1 must be at least 1"),
        ("eagle3:exit_layer=2", "no knob 'exit_layer=2'"),
    ],
)
def test_bad_knobs_are_told_before_anything_is_loaded(text, told):
    with pytest.raises(UserError, match=told):
        methods.parse(text)


def test_a_tree_of_more_ranks_than_tokens_is_told(tiny_model, tiny_decoder, tiny_weights):
    config, model = tiny_model("tied")
    folder = tiny_weights("eagle", model, ranking=RANKING)
    with pytest.raises(UserError, match=r"tree=mc_sim_25 has rank 3, but only 2 tokens are drafted"):
        Eagle(tiny_decoder(config, model), EagleConfig(weights=str(folder), tree="mc_sim_25", draft_vocab=2))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_published_call_runs_on_models_with_enough_layers(version, tiny_config, tiny_decoder):
    kind, _ = VERSIONS[version]
    for layers in (4, 8):
        config = tiny_config("tied", num_hidden_layers=layers)
        decoder = tiny_decoder(config, AutoModelForCausalLM.from_config(config))
        call = kind.published.call(decoder)
        assert (call is None) == (version == 3 and layers == 4)
        if call is not None:
            assert 0 <= call()[0] < 272


@pytest.fixture(scope="module")
def wide():
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(wide_config()).eval()
    make_faint(model)
    return model


@pytest.mark.skipif(native.kernels() is None, reason=f"no kernels here: {native.why_not()}")
@pytest.mark.parametrize("changes", [{}, {"fc_bias": True, "qkv_bias": True, "qk_norm": True}], ids=["ours", "more"])
@torch.inference_mode()
def test_one_call_is_what_torchs_operations_give(wide, tiny_weights, changes):
    target = target_of(wide)
    folder = tiny_weights("eagle", wide, useful=False, changes=changes)
    method = Eagle(target, EagleConfig(weights=str(folder), draft_weights="plain"))
    assert isinstance(method.draft_model, DraftModel)
    by_operations = network(method.head)
    length, tree = 9, tree_of([-1, -1, 0, 1, 1])
    caches = [method._cache(slot) for slot in (0, 1)]
    torch.manual_seed(5)
    prompt, unread = torch.randn(2, 1, length, D), torch.randn(1, 3, D)
    for cache in caches:
        method.head(*prompt[:, :, :6], 0, cache)
    for row, width in [(0, 1), (1, 2), (3, 3)]:
        x = torch.randn(1, width, D)
        late = unread if row == 0 else unread[:, :0]
        places = tree.places(length, target.device, row, width)
        own_places = Places.after(length - 3, 4) if row == 0 else places
        before = torch.randn(1, late.shape[1] + width, D)
        level = Level(x, places, target.new_cache(), late, before, own_places, caches[0])
        (found,) = method.draft_model([level], 5)
        outputs = by_operations(torch.cat((late, x), dim=1), own_places, caches[1], before)[:, late.shape[1] :]
        torch.testing.assert_close(found.outputs, outputs, rtol=0, atol=1e-4)
        logits = method.draft_head(method.head.head_states(outputs[0]))
        torch.testing.assert_close(found.logits, logits, rtol=0, atol=1e-4)
        assert torch.equal(found.tokens, found.logits.topk(5, dim=-1).indices)


@pytest.mark.skipif(native.kernels() is None, reason=f"no kernels here: {native.why_not()}")
@torch.inference_mode()
def test_a_sequence_with_much_to_read_runs_beside_others(wide, tiny_weights):
    """As after many steps of a batch in which it did not draft."""
    target = target_of(wide)
    method = Eagle(target, EagleConfig(weights=str(tiny_weights("eagle", wide))))
    assert isinstance(method.draft_model, DraftModel)
    torch.manual_seed(6)
    levels, length = [], 100
    for slot, late in enumerate((native.NARROW + 6, 2)):
        cache = method._cache(slot)
        method.head(*torch.randn(2, 1, length, D), 0, cache)
        x, unread, before = torch.randn(1, 1, D), torch.randn(1, late, D), torch.randn(1, late + 1, D)
        own_places = Places.after(length - late, late + 1)
        levels.append(Level(x, Places.after(length, 1), target.new_cache(), unread, before, own_places, cache))
    together = method.draft_model(levels, 4)
    for level, found in zip(levels, together, strict=True):
        (alone,) = method.draft_model([level], 4)
        assert torch.equal(found.outputs, alone.outputs)
        assert torch.equal(found.logits, alone.logits)


def test_drawn_drafts_are_a_chain_unless_a_beam_is_asked_for(tiny_model, tiny_decoder, tiny_weights):
    config, model = tiny_model("tied")
    folder = tiny_weights("eagle", model)
    method = Eagle(tiny_decoder(config, model), EagleConfig(weights=str(folder), drafts="sampled"))
    assert (method.config.beam, method.config.drafts) == (1, "sampled")


def test_a_tree_drafted_whole_has_no_more_rows_than_the_cache_has_room_for(
    tiny_model, tiny_decoder, tiny_weights, hf_greedy, random_ids
):
    config, model = tiny_model("tied", True)
    prompt, limit = random_ids(9, seed=1), 40
    target = tiny_decoder(config, model, max_len=len(prompt) + limit)
    knobs = {"tree": "best", "gamma": 16, "beam": 20, "nodes": 30}
    method = Eagle(target, EagleConfig(weights=str(tiny_weights("eagle", model)), **knobs))
    assert decode(method, prompt, limit, frozenset()).token_ids == hf_greedy(model, prompt, limit)
    assert [method.most(drafted) for drafted in (0, MAX_DRAFTS - 3, MAX_DRAFTS)] == [20, 3, 0]


@pytest.mark.skipif(native.kernels() is None, reason=f"no kernels here: {native.why_not()}")
@pytest.mark.parametrize("version", VERSIONS)
def test_drafts_in_eight_bits_change_no_answer(wide, tiny_weights, version, hf_greedy, random_ids):
    target, (kind, settings) = target_of(wide), VERSIONS[version]
    folder, prompt = tiny_weights("eagle", wide, version=version), random_ids(11, seed=2)
    accepted = []
    for weights in ("q8", "plain"):
        knobs = {"threshold": 0.0, "gamma": 3, "beam": 3, "draft_weights": weights}
        answer = decode(kind(target, settings(weights=str(folder), **knobs)), prompt, 40, frozenset())
        assert answer.token_ids == hf_greedy(wide, prompt, 40)
        accepted.append(sum(step.accepted for step in answer.steps))
    assert accepted[0] > 0
    assert abs(accepted[0] - accepted[1]) <= accepted[1] / 2  # nearly the same drafts
