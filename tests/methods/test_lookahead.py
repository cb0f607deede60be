"""Lookahead decoding: window and pool step by step against the authors' rules, on a target that is a formula."""

from __future__ import annotations

import itertools

import pytest
import torch

import methods
from bench.drafting.costs import Costs
from bench.drafting.loop import decode
from bench.drafting.sampling import Sampler
from bench.drafting.sequence import Draft, Outcome, Sequence
from bench.drafting.tree import tree_of
from bench.errors import UserError
from methods.lookahead.method import PUBLISHED, Lookahead, LookaheadConfig, choose_sizes
from methods.lookahead.window import Pool, Window, most_drafts

NEVER = frozenset()
VOCAB = 11
CHEAP = Costs(0.0, (0.0,), ((1, 1.0), (2, 1.01), (64, 1.2), (128, 1.4)))
DEAR = Costs(0.0, (0.0,), ((1, 1.0), (2, 1.1), (4, 1.3), (8, 1.8), (16, 3.0), (128, 24.0)))
PAPER = Lookahead.presets["paper"]


@pytest.fixture
def build(tiny_model, tiny_decoder):
    """knobs -> the method on a model on which drafts are often right."""
    config, model = tiny_model("tied", faint=True)
    decoder = tiny_decoder(config, model, max_len=192)
    return lambda **knobs: Lookahead(decoder, LookaheadConfig(**{"costs": str(CHEAP), **knobs}))


def formula(context) -> int:
    """The target's next token: of the last two tokens and a little of the length, so that n-grams come again."""
    return (3 * context[-1] + context[-2] + (len(context) % 9 == 0)) % VOCAB


class Authors:
    """`jacobi_greedy_search_multilevel` of the authors' lade/decoding.py, list by list, with ALWAYS_FWD_ONE.

    Unlike theirs it keeps the target's own token after a guess that is right as a whole, and pools each of several
    accepted tokens (they pool the last one in place of each).
    """

    def __init__(self, w, n, g, text, first_level, prompt):
        self.w, self.level, self.g, self.text = w, n, g, text
        self.past = [list(first_level)] + [None] * (n - 2)
        self.fill = 0
        self.map: dict[int, list[tuple[int, ...]]] = {}
        self.all = list(prompt)
        if text:
            for i in range(len(prompt) - n + 1):
                self.put(prompt[i], tuple(prompt[i + 1 : i + n]))

    def put(self, token, gram):
        found = self.map.setdefault(token, [])
        if gram in found:
            found.remove(gram)
        elif len(found) == self.g:
            found.pop(0)
        found.append(gram)

    def guesses(self):
        return list(self.map.get(self.all[-1], []))

    def rows(self, level):
        """The target's tokens after a level's: of level 0 its chain, of others their columns."""
        if level == 0:
            return [formula([*self.all, *self.past[0][: i + 1]]) for i in range(len(self.past[0]))]
        columns = range(len(self.past[level]))
        return [
            formula([*self.all, *self.past[0][:i], *(self.past[ll][i] for ll in range(1, level + 1))]) for i in columns
        ]

    def step(self, budget):
        newest, emitted = self.all[-1], [formula(self.all)]
        for guess in self.guesses():
            right = [formula(self.all)]
            for token in guess[:budget]:
                if token != right[-1]:
                    break
                right.append(formula([*self.all, *right]))
            emitted = max(emitted, right, key=len)
        if self.past[1] is None:
            results = self.rows(0)
            self.past[0] = self.past[0][1:]
            self.past[1] = results
            self.fill = 1
        elif self.past[self.level - 2] is None:
            results = self.rows(self.fill)
            for ll in range(self.fill + 1):
                self.past[ll] = self.past[ll][1:]
            self.past[self.fill + 1] = results[1:]
            self.fill += 1
        else:
            results = self.rows(self.level - 2)
            assert len(results) == self.w
            self.put(newest, (*(self.past[ll][0] for ll in range(1, self.level - 1)), results[0]))
            for i in range(1, self.w):
                gram = (*(self.past[ll][i] for ll in range(1, self.level - 1)), results[i])
                self.put(self.past[0][i - 1], gram)
            self.past[0] = self.past[1][1:]
            for ll in range(1, self.level - 2):
                self.past[ll] = self.past[ll + 1]
            self.past[self.level - 2] = results
        for token in emitted:
            self.all.append(token)
            if self.text and len(self.all) >= self.level:
                self.put(self.all[-self.level], tuple(self.all[-self.level + 1 :]))
        return emitted


def paths_of(tokens, parents) -> list[tuple[int, ...]]:
    """The tokens on the path to each draft."""
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(tokens, parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return paths


def verified(draft, context) -> Outcome:
    """What the formula makes of a draft."""
    rows = [(), *paths_of(draft.tokens, draft.tree.parents)]
    says = [formula([*context, *row]) for row in rows]
    logits = torch.zeros(len(rows), VOCAB).scatter_(1, torch.tensor(says)[:, None], 1.0)
    accepted, node, offered = [], -1, len(draft.proposed.tokens)
    while True:
        children = [i for i in draft.tree.children.get(node, ()) if i < offered and draft.tokens[i] == says[node + 1]]
        if not children:
            return Outcome(draft, accepted, says[node + 1], None, logits)
        node = children[0]
        accepted.append(node)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("sizes", [PUBLISHED, (2, 3, 2), (1, 3, 1), (1, 5, 3), (4, 4, 3), (15, 5, 15)])
def test_window_pool_and_guesses_are_the_authors(sizes, text, build):
    w, n, g = sizes
    method = build(window=w, ngram=n, guesses=g, text=text, stop="never")
    prompt = [1, 4, 2, 8, 5, 7]
    sequence = Sequence([*prompt, 3], len(prompt), None)
    method.open(sequence, None)
    notes = sequence.notes
    assert len(notes.window.levels[0]) == w + n - 3
    assert set(notes.window.levels[0]) <= set(prompt)
    authors = Authors(w, n, g, text, notes.window.levels[0], sequence.context)
    accepted, limit = 0, 60
    while len(authors.all) < limit:
        budget = limit - len(authors.all)
        (draft,) = method.propose([sequence], [budget - 1])
        guessed = {gram[:depth] for gram in authors.guesses() for depth in range(1, min(n, budget))}
        assert set(paths_of(draft.proposed.tokens, draft.proposed.tree.parents)) == guessed
        outcome = verified(draft, sequence.context)
        sequence.context += outcome.emitted
        method.observe([sequence], [outcome])
        accepted += len(outcome.accepted)
        if budget == 1:  # nothing will come after: the window is left out
            break
        assert outcome.emitted == authors.step(budget - 1)
        assert notes.window.levels == [level for level in authors.past if level is not None]
        assert {token: list(grams) for token, grams in notes.pool.grams.items()} == authors.map
    assert accepted > 0


@pytest.mark.parametrize(("sizes", "drafts"), [(PUBLISHED, 55), ((15, 5, 15), 119), ((2, 3, 2), 7)])
def test_a_step_has_the_published_shape(sizes, drafts):
    """Positions as in the authors' `jforward_multilevel`: level l of column i is l + i tokens after the newest."""
    w, n, g = sizes
    assert most_drafts(*sizes) == drafts
    window = Window(w, n, [0])
    unlike = itertools.count()
    window.levels = [[next(unlike) for _ in range(w - 1)], *([next(unlike) for _ in range(w)] for _ in range(n - 2))]
    nodes = {}
    ends = window.carry(nodes)
    depths = tree_of([parent for parent, _ in nodes]).depths[1:]
    assert len(nodes) == drafts - g * (n - 1) == window.size
    assert sorted(depths) == sorted([*range(1, w), *(i + level for level in range(1, n - 1) for i in range(w))])
    assert [depths[end] for end in ends] == [i + n - 2 for i in range(w)]


def test_scouts_are_neither_accepted_nor_counted(build, random_ids, monkeypatch):
    method, seen = build(**PAPER), []
    observe = Lookahead._observe
    monkeypatch.setattr(
        Lookahead, "_observe", lambda self, notes, newest, o: seen.append(o) or observe(self, notes, newest, o)
    )
    answer = decode(method, random_ids(12, seed=1), 80, NEVER)
    assert any(step.accepted for step in answer.steps)
    for outcome, step in zip(seen, answer.steps, strict=True):
        scouts = outcome.draft.tokens[step.drafted :]
        assert len(scouts) > 0 or step is answer.steps[-1]
        assert all(draft < step.drafted for draft in outcome.accepted)


def test_a_full_pool_forgets_the_oldest_and_knows_what_only_the_window_found():
    pool = Pool(3, 2)
    pool.add(5, (1, 2), by_window=True)
    pool.add(5, (3, 4), by_window=True)
    pool.add(5, (1, 2), by_window=True)
    assert pool.after(5) == (0, [(1, 2), (3, 4)])
    pool.read([0, 5, 6, 7, 5, 3, 4], 2)
    assert pool.after(5) == (0, [(3, 4), (1, 2)])
    assert pool.after(7) == (0, [(5, 3)])
    assert pool.after(6) == (0, [])  # 6 7 5 ends before the two last tokens
    assert pool.found_by_window(5, [1, 2])
    assert not pool.found_by_window(5, [3])
    pool.add(5, (3, 4), by_window=True)
    assert not pool.found_by_window(5, [3])
    pool.add(5, (9, 9), by_window=True)
    assert pool.after(5) == (0, [(9, 9), (3, 4)])


def test_sizes_follow_the_costs(build):
    free = Costs(0.0, (0.0,), ((1, 1.0), (128, 1.0)))
    assert [choose_sizes(costs, text=True)[0] for costs in (free, CHEAP, DEAR)] == [15, PUBLISHED[0], 0]
    assert build(costs=str(DEAR)).config.window == 0
    assert build(costs=str(DEAR), text=False).config.window > 0  # there is nothing else to draft from
    assert build(costs=str(DEAR), window=3).config.sizes == (3, 5, 7)
    assert build(**PAPER).config.sizes == PUBLISHED == (7, 5, 7)
    assert build(**PAPER).widest == 56
    method = build(costs="")
    again = Lookahead(method.target, Lookahead.repeated(LookaheadConfig(), method.measured))
    assert again.config.sizes == method.config.sizes


def rows_of(method, prompt, limit, monkeypatch):
    """The answer, and the drafts of each step, scouts included."""
    rows, observe = [], Lookahead.observe
    with monkeypatch.context() as patch:
        patch.setattr(
            Lookahead, "observe", lambda self, s, o: rows.append(len(o[0].draft.tokens)) or observe(self, s, o)
        )
        return decode(method, prompt, limit, NEVER), rows


def test_a_useless_window_is_hardly_carried_along(build, random_ids, monkeypatch, hf_greedy, tiny_model):
    """N-grams of tokens that never come: what is drafted and carried costs no more than the allowance."""
    move = Window.move
    monkeypatch.setattr(Window, "move", lambda self, newest, results: move(self, newest, [271] * len(results)))
    prompt, model = random_ids(12, seed=1), tiny_model("tied", faint=True)[1]
    wanted = hf_greedy(model, prompt, 120)
    assert 271 not in wanted
    method = build(costs=str(DEAR), window=2, ngram=3, guesses=2, text=False)
    answer, rows = rows_of(method, prompt, 120, monkeypatch)
    assert answer.token_ids == wanted
    assert 0 < sum(DEAR.verifying(1 + drafts) - 1 for drafts in rows) <= 2 * (0.25 + 0.01 * 120)


def test_a_window_may_spend_what_its_n_grams_save(build):
    method = build(costs=str(DEAR), window=2, ngram=3, guesses=2, text=False)
    sequence = Sequence([1, 2, 5], 2, None)
    method.open(sequence, None)
    notes = sequence.notes
    for by_window, gain in ((False, 0), (True, 2)):
        before, sequence.context = notes.window_pace.allowance, [1, 2, 5]
        notes.pool.grams = {5: {(6, 7): by_window}}
        notes.scouts, notes.ends, notes.drafted = 0, (), [6, 7]
        outcome = Outcome(Draft(notes.drafted), [0, 1], 4, None, torch.zeros(3, VOCAB))
        sequence.context += outcome.emitted
        method.observe([sequence], [outcome])
        assert notes.window_pace.allowance == pytest.approx(before + gain, abs=0.05)


def test_samples_near_temperature_0_are_the_greedy_answer(build, hf_greedy, tiny_model, random_ids):
    model, prompt = tiny_model("tied", faint=True)[1], random_ids(12, seed=1)
    for knobs in ({}, PAPER, {"costs": str(DEAR)}):
        assert decode(build(**knobs), prompt, 40, NEVER, Sampler(1e-4)).token_ids == hf_greedy(model, prompt, 40)


@pytest.mark.parametrize(
    "knobs",
    ["window=-2", "ngram=2", "guesses=-1", "window=20,ngram=7", "guesses=40", "window=0,text=false", "stop=best"],
)
def test_knobs_out_of_range_are_refused(knobs):
    with pytest.raises(UserError, match=knobs.partition("=")[0]):
        methods.parse(f"lookahead:{knobs}")
