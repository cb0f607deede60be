"""`a+b`: the first member that has a draft drafts, all see every outcome, and the output stays the target's own."""

from __future__ import annotations

import pytest

import methods
from bench.drafting.composition import Composition, CompositionConfig, Member
from bench.drafting.loop import decode
from bench.drafting.method import NoKnobs
from bench.drafting.sampling import Sampler
from bench.drafting.sequence import Draft, Outcome
from bench.errors import UserError
from tests.fakes import OneSequence

NEVER = frozenset()
COSTS = "costs=0.100/0.010/1:0.900/2:0.910/16:1.100/64:1.400/128:2.000"


@pytest.fixture
def scene(tiny_model, tiny_decoder, tiny_adapter, tiny_heads, tiny_weights):
    """(hf_model, label -> the method on one decoder); drafts of kangaroo and medusa are often right."""
    config, model = tiny_model("tied", True)
    decoder = tiny_decoder(config, model, max_len=128)
    adapter, heads = f"weights={tiny_adapter(model)},threshold=0.2,gamma=3", f"weights={tiny_heads(model)},tree=0/1/0-0"
    spelled = {"kangaroo": f"kangaroo:{adapter}", "tree": f"kangaroo:{adapter},beam=2", "medusa": f"medusa:{heads}"}
    eagles = {name: tiny_weights(name, model) for name in ("eagle", "eagle3")}
    spelled |= {name: f"{name}:weights={folder},threshold=0.2,gamma=3" for name, folder in eagles.items()}
    spelled |= {"pld": "pld:ngram=2,tokens=3,follow=3,least=1,stop=never", "vanilla": "vanilla"}
    spelled |= {"sam": "sam:paper,tokens=3", "suffix": "suffix:tree,tokens=3,least=1,stop=never"}
    spelled |= {name: f"{name}:{COSTS}" for name in ("recycling", "lookahead", "layer-skip")}

    def build(label: str):
        variant = methods.parse("+".join(spelled[part] for part in label.split("+")))
        return variant.method(decoder, variant.config)

    return model, build


LABELS = ["pld+kangaroo", "kangaroo+pld", "pld+tree", "tree+pld", "pld+medusa", "medusa+pld", "pld+vanilla"]
LABELS += ["pld+medusa+kangaroo", "sam+kangaroo", "suffix+medusa", "suffix+tree"]
LABELS += ["pld+recycling", "pld+layer-skip", "recycling+kangaroo", "lookahead+recycling"]
LABELS += ["pld+eagle", "eagle+pld", "pld+eagle3"]


@pytest.mark.parametrize("label", LABELS)
def test_output_is_the_targets_and_every_member_drafts(label, scene, hf_greedy, random_ids):
    model, build = scene
    method, parts = build(label), set()
    for seed in range(3):
        prompt = random_ids(6, seed=seed) * 3
        answer = decode(method, prompt, 40, NEVER)
        assert answer.token_ids == hf_greedy(model, prompt, 40)
        parts |= {step.part for step in answer.steps if step.drafted}
    # A draft model has always something to say; a lookup has not.
    assert parts >= ({0, 1} if label.startswith(("pld", "sam", "suffix")) and "vanilla" not in label else {0})


@pytest.mark.parametrize("label", ["pld+kangaroo", "pld+tree", "pld+medusa", "suffix+tree", "pld+eagle", "pld+eagle3"])
def test_a_member_drafts_after_anothers_draft_as_if_it_were_alone(label, scene, random_ids, monkeypatch):
    """What it missed while the other drafted, it reads before it drafts again."""
    _, build = scene
    whole, alone = build(label), build(label.split("+")[1])
    prompt = random_ids(6, seed=1) * 3
    made = decode(whole, prompt, 40, NEVER)
    text, steps = [*prompt, made.token_ids[0]], iter(made.steps)
    compared = 0
    for step in steps:
        if step.part == 1 and compared < 4 and len(text) > len(prompt) + 1:
            fresh = decode(alone, text[:-1], len(made.token_ids) + 1 - (len(text) - len(prompt)) + 1, NEVER)
            assert fresh.token_ids[0] == text[-1]
            first = fresh.steps[0]
            assert (first.drafted, first.accepted, first.emitted) == (step.drafted, step.accepted, step.emitted)
            compared += 1
        text += step.emitted
    assert compared > 0


def test_samples_near_temperature_0_are_the_greedy_answer(scene, hf_greedy, random_ids):
    model, build = scene
    prompt = random_ids(6, seed=1) * 3
    for label in LABELS:
        assert decode(build(label), prompt, 30, NEVER, Sampler(1e-4)).token_ids == hf_greedy(model, prompt, 30)


class Told(OneSequence):
    """Drafts what it is told, a draft a step; keeps what it sees."""

    def __init__(self, target, drafts):
        super().__init__(target, NoKnobs())
        self.drafts, self.seen, self.forgot = iter(drafts), [], 0

    def open(self, sequence, prompt):
        super().open(sequence, prompt)
        sequence.notes = len(sequence.context)

    def draft(self, room):
        assert self.sequence.notes == len(self.sequence.context)
        return Draft(next(self.drafts, [])[:room])

    def observed(self, outcome):
        self.seen.append((outcome.draft.part, len(outcome.accepted), outcome.emitted))
        self.sequence.notes += len(outcome.emitted)

    def forget(self):
        self.forgot += 1


def test_first_draft_wins_all_see_all_and_notes_are_each_members_own(scene, hf_greedy, random_ids):
    model, build = scene
    target, prompt = build("vanilla").target, random_ids(9, seed=4)
    answer = hf_greedy(model, prompt, 12)
    first, second = Told(target, [[], answer[2:4], []]), Told(target, [[answer[1]], [], []])
    members = {"first": first, "second": second}
    config = CompositionConfig(tuple(Member(name, lambda t, c: members[c], name) for name in members))
    both = Composition(target, config)
    made = decode(both, prompt, 12, NEVER)
    assert made.token_ids == answer
    assert (made.steps[0].part, made.steps[0].drafted, made.steps[0].accepted) == (1, 1, 1)
    assert first.seen == second.seen
    assert first.seen[0] == (1, 1, made.token_ids[1:3])
    both.forget()
    assert (first.forgot, second.forgot) == (1, 1)
    assert both.notes["parts"] == ["first", "second"]


def test_labels_are_split_between_methods_not_within_knobs():
    variant = methods.parse("pld:ngram=2+kangaroo:costs=0.1/0.2+0.3/1:1.0+medusa")
    assert variant.method is Composition
    assert [member.label for member in variant.config.members] == [
        "pld:ngram=2", "kangaroo:costs=0.1/0.2+0.3/1:1.0", "medusa",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("pld+hf-generate", "brings its own loop"),
        ("pld+nothing", "unknown method 'nothing'"),
        ("pld+kangaroo:gama=3", "no knob 'gama=3'"),
    ],
)
def test_what_cannot_be_composed_is_refused(label, said):
    with pytest.raises(UserError, match=said):
        methods.parse(label)


def test_a_member_that_is_not_lossless_is_refused(scene, tiny_heads):
    model, build = scene
    variant = methods.parse(f"pld+medusa:weights={tiny_heads(model)},accept=typical")
    with pytest.raises(UserError, match="is not lossless"):
        variant.method(build("vanilla").target, variant.config)


def test_a_step_without_drafts_is_everybodys():
    own = [3]
    cases = [(own, own, True), ([3], own, False), ([], [], True), ([], own, False), (own, [], False), ([], None, False)]
    for tokens, drafted, expected in cases:
        assert Outcome(Draft(tokens), [], 0, None, None).is_of(drafted) == expected


def test_beside_a_member_that_never_drafts_a_method_drafts_as_alone(scene, tiny_weights, random_ids):
    """It also counts the steps in which it did not draft, and tries again as soon."""
    model, build = scene
    target = build("vanilla").target
    costs = "costs=0.100/0.150/1:0.900/2:0.910/16:1.100/64:1.400/128:2.000"
    variant = methods.parse(f"eagle:weights={tiny_weights('eagle', model)},stop=gain,gamma=3,{costs}")
    members = [Member("eagle", variant.method, variant.config)]
    members.append(Member("silent", lambda t, c: Told(t, [[] for _ in range(99)]), "silent"))
    steps = []
    for count in (1, 2):
        both = Composition(target, CompositionConfig(tuple(members[:count])))
        made = [decode(both, random_ids(12, seed=seed), 60, NEVER) for seed in range(3)]
        steps.append([[step.drafted for step in answer.steps] for answer in made])
    assert steps[0] == steps[1]
    assert any(any(drafted) for drafted in steps[0])
    assert any(0 in drafted for drafted in steps[0])
