"""Kangaroo's draft model in one call of the kernels, against torch's operations, and with exit layers in eight bits."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.drafting.loop import decode
from bench.drafting.tree import tree_of
from bench.engine.kernels import native
from bench.engine.kernels.draft import DraftModel, Level
from bench.engine.places import Places
from methods.kangaroo.drafting import ByOperations
from methods.kangaroo.method import Kangaroo, KangarooConfig
from tests.wide import D, make_faint, target_of, wide_config

pytestmark = pytest.mark.skipif(native.kernels() is None, reason=f"no kernels here: {native.why_not()}")
EXIT, LIMIT = 2, 40


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(4)
    made = AutoModelForCausalLM.from_config(wide_config()).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.copy_(torch.randn(weight.shape) * (0.3 if weight.dim() == 1 else weight.shape[1] ** -0.5))
            if name.endswith("norm.weight"):
                weight.add_(1)
    make_faint(made)
    return made


def adapter_of(model, tiny_adapter, feedback: bool):
    changes: dict = {"exit_layer": EXIT, "feedback": feedback}
    # Mostly the state, a little of the one before: right at times.
    joined = torch.cat((torch.eye(D), 0.2 * torch.eye(D)), dim=1)
    return tiny_adapter(model, changes=changes, tensors={"input_proj.weight": joined} if feedback else None)


def kangaroo(target, folder, **knobs) -> Kangaroo:
    return Kangaroo(target, KangarooConfig(weights=str(folder), exit_layer=EXIT, stop="threshold", **knobs))


@pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
@pytest.mark.parametrize("feedback", [False, True])
@torch.inference_mode()
def test_one_call_is_what_torchs_operations_give(model, tiny_adapter, feedback, dtype):
    target = target_of(model, dtype)
    method = kangaroo(target, adapter_of(model, tiny_adapter, feedback), draft_weights="plain")
    other = ByOperations(target.by_operations(), EXIT, method.adapter, method.draft_head)
    assert isinstance(method.draft_model, DraftModel)
    length, tree = 9, tree_of([-1, -1, 0, 1, 1])
    levels = [(0, 1), (1, 2), (3, 3)]  # first row of the tree, and how many
    caches = [[target.new_cache(), method._cache(slot)] for slot in (0, 1)]
    torch.manual_seed(5)
    prompt, unread = torch.randn(1, length, D).to(dtype), torch.randn(1, 3, D).to(dtype)
    before = torch.randn(1, length, D).to(dtype) if feedback else None
    for cache, own in caches:
        target.run_layers(prompt, 0, cache, 0, EXIT)
        method.adapter(prompt[:, :6], 0, own, None if before is None else before[:, :6])
    near = {"rtol": 0, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2**-4, "atol": 0.1}
    for row, width in levels:
        x = torch.randn(1, width, D).to(dtype)
        places = own_places = tree.places(length, target.device, row, width)
        late = unread if row == 0 else unread[:, :0]
        if row == 0:
            own_places = Places.after(length - 3, 4)
        states = torch.randn(1, late.shape[1] + width, D).to(dtype) if feedback else None
        one, two = (
            run([Level(x, places, cache, late, states, own_places, own)], 5)[0]
            for run, (cache, own) in zip((method.draft_model, other), caches, strict=True)
        )
        for name in ("exits", "outputs", "logits", "chances"):
            torch.testing.assert_close(getattr(one, name).float(), getattr(two, name).float(), **near)
        # The tokens are the most probable by the call's own logits.
        best = one.logits.softmax(-1).topk(5, dim=-1)
        assert torch.equal(one.tokens, best.indices)
        torch.testing.assert_close(one.chances, best.values)
        level = Level(one.exits, places, caches[0][0], late, states, own_places, caches[0][1], is_exit=True)
        (given,) = method.draft_model([level], 5)
        assert torch.equal(given.logits, one.logits)


def test_of_equal_logits_the_first_is_taken(model, tiny_adapter):
    target = target_of(model)
    method = kangaroo(target, adapter_of(model, tiny_adapter, feedback=False), draft_weights="plain")
    method.draft_model.norm.zero_()  # all logits are then 0
    state, places = target.embed([5]), Places.after(0, 1)
    level = Level(state, places, target.new_cache(), state[:, :0], None, places, method._cache(0))
    (drafted,) = method.draft_model([level], 4)
    assert drafted.tokens.tolist() == [[0, 1, 2, 3]]
    torch.testing.assert_close(drafted.chances, torch.full((1, 4), 1 / 272))


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("beam", [1, 3])
def test_drafts_of_copied_layers_change_no_answer(model, tiny_adapter, hf_greedy, random_ids, beam, feedback):
    """They are made in eight bits and checked by all layers of the target as it is."""
    target = target_of(model)
    folder = adapter_of(model, tiny_adapter, feedback)
    prompt = random_ids(11, seed=2)
    expected = hf_greedy(model, prompt, LIMIT)
    accepted = []
    for weights, resumed in (("q8", 0), ("plain", EXIT)):
        method = kangaroo(target, folder, threshold=0.0, gamma=3, beam=beam, draft_weights=weights)
        assert method.resume_layer == resumed
        answer = decode(method, prompt, LIMIT, frozenset())
        assert answer.token_ids == expected
        accepted.append(sum(step.accepted for step in answer.steps))
    assert accepted[0] > 0
    assert abs(accepted[0] - accepted[1]) <= accepted[1] / 2  # nearly the same drafts


def test_a_four_bit_target_drafts_with_its_own_layers(model, tiny_adapter):
    target = target_of(model, quantize="q4")
    assert kangaroo(target, adapter_of(model, tiny_adapter, feedback=False)).resume_layer == EXIT
