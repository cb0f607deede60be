"""The draft model of SpS: found, its vocabulary compared, shared; and the target's own weights in fewer bits."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from transformers import GPT2Config

import methods
from bench.drafting.loop import decode
from bench.engine.joined import for_batch
from bench.engine.kernels import native
from bench.engine.quantize import Q4
from bench.errors import UserError
from bench.models import loading, second
from bench.models.checkpoints import resolve
from methods.sps import SpS, SpSConfig
from methods.vanilla import Vanilla
from tests.byte_tokenizer import BYTES, SPECIAL, byte_tokenizer
from tests.methods.draft_models import ALWAYS, LIMIT, NEVER, counters, watched
from tests.methods.draft_models import scene as scene
from tests.methods.draft_models import wide as wide
from tests.methods.tiny_weights.sps import COSTS
from tests.tiny import QUESTIONS, records, run_bench, write_questions

SELF = f"sps:model=self,costs={COSTS}"
NEEDS_KERNELS = pytest.mark.skipif(native.kernels() is None, reason=f"no kernels here: {native.why_not()}")


def test_methods_with_the_same_draft_model_share_it_while_they_live(scene):
    found = scene()
    one, other = found.sps(**ALWAYS), found.sps(stop="heuristic")
    assert one.draft is other.draft
    assert SpS(found.decoder, one.probing(2)[0]).draft is one.draft
    assert one.extra_parameters == one.draft.parameters == found.small.num_parameters()
    assert one.notes["draft_model"] == f"{found.folder.name}, float32"
    assert one.notes["weights_sha256"] == resolve(str(found.folder)).sha256
    several = for_batch(found.decoder, 3)
    loading.stands_for(several, found.checkpoint)
    assert SpS(several, one.config).draft is one.draft
    kept = weakref.ref(one.draft)
    del one, other
    gc.collect()
    assert kept() is None


SWAPPED = [*BYTES[:97], BYTES[98], BYTES[97], *BYTES[99:]]


@pytest.mark.parametrize(
    ("letters", "special", "said"),
    [
        (SWAPPED, SPECIAL, f"token 97 is {BYTES[98]!r} there and {BYTES[97]!r} here"),
        (BYTES[:-1], SPECIAL, f"token 255 is '<|endoftext|>' there and {BYTES[-1]!r} here"),
        (BYTES, (SPECIAL[0], "<|begin|>", SPECIAL[2]), "token 257 is '<|begin|>' there and '<|im_start|>' here"),
    ],
)
def test_another_vocabulary_is_refused_with_its_first_difference(letters, special, said, scene, monkeypatch):
    found = scene(tokenizer=byte_tokenizer(letters, special))
    monkeypatch.setattr(second, "load_decoder", lambda *given, **options: pytest.fail("weights were read"))
    config = SpSConfig(model=str(found.folder))
    model = loading.find(str(found.checkpoint.folder), None, print)
    for check in (lambda: SpS.check_weights(config, model), lambda: SpS(found.decoder, config)):
        with pytest.raises(UserError) as refusal:
            check()
        assert said in str(refusal.value)
        assert f"sps:model={found.folder}: {found.folder.name} has another vocabulary than" in str(refusal.value)


def test_tokens_that_were_added_to_one_of_the_two_are_no_difference(scene, random_ids):
    found = scene(tokenizer=byte_tokenizer(special=(*SPECIAL, "<pad>")))
    assert decode(found.sps(**ALWAYS), random_ids(5), 5, NEVER).steps


def test_what_is_wrong_with_a_draft_model_is_told_with_its_knob(scene, tmp_path):
    found = scene()
    (tmp_path / "gpt2").mkdir()
    GPT2Config().save_pretrained(tmp_path / "gpt2")
    for knobs, said in [
        ({}, "sps needs a draft model: a smaller one"),
        ({"model": "absent"}, "sps:model=absent: unknown model 'absent'"),
        ({"model": str(tmp_path / "gpt2")}, f"sps:model={tmp_path}/gpt2: "),
        ({"model": "self"}, "sps:model=self: tiny-tied cannot be quantised: a matrix has 48 columns"),
        (
            {"model": str(found.folder), "quantize": "q4"},
            f"sps:model={found.folder},quantize=q4: .* cannot be quantised",
        ),
    ]:
        with pytest.raises(UserError, match=said):
            SpS(found.decoder, SpSConfig(**knobs))


@pytest.mark.parametrize(
    "knobs",
    ["gamma=0", "gamma=128", "threshold=1.5", "stop=never", "quantize=q5", "drafts=best", "costs=1",
     "model=self,quantize=none"],
)  # fmt: skip
def test_knobs_out_of_range_are_refused(knobs):
    with pytest.raises(UserError, match=knobs.rpartition(",")[2].partition("=")[0]):
        methods.parse(f"sps:{knobs}")


def test_a_run_with_another_vocabulary_ends_before_the_weights_are_read(scene, tmp_path, capsys, monkeypatch):
    found = scene(tokenizer=byte_tokenizer(SWAPPED))
    monkeypatch.setattr(loading, "load_decoder", lambda *given, **options: pytest.fail("weights were read"))
    questions = write_questions(tmp_path / "questions.jsonl", *QUESTIONS)
    flags = ["--method", f"pld+sps:model={found.folder}"]
    assert run_bench(found.checkpoint.folder, questions, tmp_path / "out", *flags) == 2
    assert "has another vocabulary" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- the target's own weights in fewer bits --------------------------------------------------------------------------


@NEEDS_KERNELS
@pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
@pytest.mark.parametrize("on_the_grid", [False, True])
def test_the_targets_four_bit_copy_drafts_for_it(on_the_grid, dtype, wide, random_ids):
    model, checkpoint, target = wide(on_the_grid, dtype)
    method = SpS(target, SpSConfig(model="self", costs=COSTS))
    assert (method.draft.precision, method.config.quantize) == ("q4", "q4")
    assert method.extra_parameters == target.parameters
    alone = loading.load_decoder(checkpoint, torch.device("cpu"), torch.float32, quantize="q4")
    made, prompt = watched(method), random_ids(12, seed=1)
    answer = decode(method, prompt, LIMIT, NEVER)
    assert answer.token_ids == decode(Vanilla(target, None), prompt, LIMIT, NEVER).token_ids
    for text, drafts in made:
        if drafts:
            assert drafts == decode(Vanilla(alone, None), text, len(drafts), NEVER).token_ids
    drafted, accepted = (sum(counts) for counts in zip(*counters(answer), strict=True))
    assert 0 < drafted <= accepted * (1.1 if on_the_grid else 4)
    plain = {name: weight.detach().to(dtype).float() for name, weight in model.named_parameters() if "_proj" in name}
    moved = sum(float((Q4.of(weight).plain() - weight).square().sum()) for weight in plain.values())
    norm = sum(float(weight.square().sum()) for weight in plain.values())
    assert method.notes["rounding"] == pytest.approx((moved / norm) ** 0.5, rel=0.1, abs=2e-3)
    assert (method.notes["rounding"] < 0.01) == on_the_grid == ("caution" in method.notes)


@NEEDS_KERNELS
def test_a_target_in_four_bits_has_no_smaller_copy(wide):
    _, checkpoint, target = wide(quantize="q4")
    with pytest.raises(UserError, match="sps:model=self: the target is in q4 already: leave out --quantize"):
        SpS(target, SpSConfig(model="self"))
    assert SpS(target, SpSConfig(model=str(checkpoint.folder), costs=COSTS)).draft.precision == "q4"


@NEEDS_KERNELS
def test_another_model_drafts_in_eight_bits_unless_asked_otherwise(wide):
    _, checkpoint, target = wide()
    named = {"model": str(checkpoint.folder), "costs": COSTS}
    assert SpS(target, SpSConfig(**named)).draft.precision == "q8"
    assert SpS(target, SpSConfig(**named, quantize="q4")).draft.precision == "q4"
    assert SpS(target, SpSConfig(model=named["model"], **SpS.presets["paper"])).draft.precision == "float32"


@NEEDS_KERNELS
def test_the_report_says_that_acceptance_is_by_construction(wide, tmp_path, capsys):
    _, checkpoint, _ = wide(on_the_grid=True)
    questions, labels = write_questions(tmp_path / "q.jsonl", *QUESTIONS), (SELF, f"pld+{SELF}")
    flags = [word for label in labels for word in ("--method", label)]
    assert run_bench(checkpoint.folder, questions, tmp_path / "out", *flags, "--max-new-tokens", "16") == 0
    run, turns = records(tmp_path / "out")
    assert {turn.audit.verdict for turn in turns if turn.method != "vanilla"} == {"identical"}
    assert all(sum(sum(t.per_step_accepted) for t in turns if t.method == label) for label in labels)
    assert run.methods[labels[0]].extra_parameters == run.model["parameters"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.count("**: it drafts with the target's own weights in q4, and these were on that grid already") == 2
    assert "nearly every draft is accepted by construction" in report
