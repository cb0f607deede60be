"""What a race looks like on a terminal of any width, and in a pipe."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from bench.config import RunConfig
from bench.drafting.loop import decode
from bench.drafting.sequence import Draft, Step
from bench.run import generate
from bench.run.generate import ACCEPTED, BONUS, REJECTED, Detokenizer, Generation, Side
from bench.text import visible
from methods.vanilla import Vanilla
from tests.bench.run.test_generate import EOS, PROMPT, PROMPT_TOKENS, Scripted, answered, ask
from tests.bench.run.test_generate import by_script as by_script
from tests.bench.run.test_generate import target as target


class Drafting(Vanilla):
    """Drafts the target's next token and then a wrong one; the right ones come from a decode before."""

    answer: tuple[int, ...] = ()

    def propose_text(self, context, budget):
        right, after = self.answer[len(context) - PROMPT_TOKENS :][:2]
        return Draft([right, (after + 1) % 256][:budget])


@pytest.fixture
def race(target, tiny_tokenizer):
    """A generation on a prompt of three tokens whose method's every other token is an accepted draft."""
    prompt = [5, 6, 7]
    assert len(prompt) == PROMPT_TOKENS
    Drafting.answer = tuple(decode(Vanilla(target, None), prompt, 20, frozenset()).token_ids)
    sides = [
        Side(label, m(target, None), 9, frozenset(), Detokenizer(tiny_tokenizer))
        for label, m in (("vanilla", Vanilla), ("drafting", Drafting))
    ]
    return Generation(RunConfig(), "tiny", prompt, sides)


def shown(race, rejected=False, **options) -> str:
    out = io.StringIO()
    console = Console(file=out, highlight=False, **options)
    generate.show(race, console, rejected=rejected)
    return out.getvalue()


def test_styles_tell_accepted_drafts_bonus_tokens_and_rejected_drafts_apart(race):
    race.run()
    vanilla, drafting = race.sides
    assert drafting.token_ids == vanilla.token_ids
    assert [len(step.emitted) for step in drafting.steps] == [2, 2, 2, 2]
    # The last step had room for one draft: nothing was tried where its bonus stands.
    kept = [BONUS, *[ACCEPTED, REJECTED, BONUS] * 3, ACCEPTED, BONUS]
    assert [style for _, style in drafting.text][:-1] == kept
    assert {style for _, style in vanilla.text} == {BONUS}
    assert generate.styled(drafting).plain == generate.styled(vanilla).plain


def test_wide_terminal_shows_two_columns_with_a_legend(race):
    said = shown(race, rejected=True, force_terminal=True, width=120, color_system="standard")
    last = said[said.rindex("\x1b[2K") :] if "\x1b[2K" in said else said
    titles = [line for line in re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", last).splitlines() if "tok/s ─" in line]
    assert titles
    assert all("vanilla" in line and "drafting" in line and len(line) == 120 for line in titles)
    assert "\x1b[1;32maccepted draft" in said
    assert "\x1b[2;9;31mrejected draft" in said


def test_interrupted_stream_leaves_what_was_said(race):
    vanilla = race.sides[0]
    advance = vanilla.advance

    def advance_thrice() -> None:
        advance()
        if len(vanilla.steps) == 3:
            raise KeyboardInterrupt

    vanilla.advance = advance_thrice
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        generate.show(race, Console(file=out, highlight=False, force_terminal=True, width=120, color_system=None))
    said = generate.styled(vanilla).plain.split("\n")[0]
    assert said
    assert f"│ {said}" in out.getvalue().split("\x1b[?25h")[-1]  # after the live view gave the cursor back


def test_pipe_gets_one_answer_after_the_other(race):
    piped = shown(race, rejected=True, width=200)
    assert "\x1b" not in piped
    assert "accepted draft" not in piped
    answer = race.sides[0].answer
    answer = visible(answer)
    assert piped == f"--- vanilla\n{answer}\n\n--- drafting\n{answer}\n\n" + "".join(
        f"{line}\n" for line in generate.closing_lines(race)
    )


WORDS = ["photosynthesis", "turns", "light", "into", "sugar", "and", "oxygen", "mostly"]


@pytest.fixture
def words(target, tiny_tokenizer, by_script, monkeypatch):
    """A generation of both sides' words, one letter a step, with a draft that is lost."""
    monkeypatch.setattr(generate, "decode", lambda *given: None)
    tokens = tiny_tokenizer.encode(" ".join(WORDS), add_special_tokens=False)
    steps = [Step([token], drafted=1, rejected=[90]) for token in tokens]
    sides = [
        Side(label, Scripted(target, list(steps)), len(tokens), EOS, Detokenizer(tiny_tokenizer))
        for label in ("vanilla", "m:path=\x1b[2J")
    ]
    return Generation(RunConfig(), "tiny", [1], sides, "What is photosynthesis?")


def plain(said: str) -> str:
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", said)


@pytest.mark.parametrize("width", [40, 71, 72, 80, 100])
def test_terminal_of_any_width_keeps_words_whole(words, width):
    raw = shown(words, force_terminal=True, width=width, height=24, color_system=None)
    said = plain(raw)
    lines = said.splitlines()
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if line.startswith("│")]
    beside = any(line.count("│") == 4 for line in rows)
    assert beside == (width >= generate.WIDE)
    for side in range(2):
        halves = [line[side * (width // 2) :][: width // 2] if beside else line for line in rows[-8:]]
        found = [word for half in halves for word in half.strip("│ ").split()]
        assert set(WORDS) <= set(found)
    assert "\x1b[2J" not in raw
    assert "⟨U+001B⟩" in said


def test_terminal_with_few_lines_shows_the_end_while_it_streams(words):
    out = io.StringIO()
    console = Console(file=out, highlight=False, force_terminal=True, width=60, height=9, color_system=None)
    heights, panels = [], generate._panels

    def measured(*given, whole):
        made = panels(*given, whole=whole)
        if not whole:
            heights.append(len(console.render_lines(made, pad=False)))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "_panels", measured)
        generate.show(words, console)
    assert heights
    assert max(heights) <= 8


def test_dumb_terminal_gets_whole_words_without_codes(words, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    said = shown(words, rejected=True, force_terminal=True, width=40, height=24, color_system=None)
    assert "\x1b" not in said
    assert "│" not in said
    assert max(map(len, said.splitlines())) <= 40
    assert said.split().count("photosynthesis") == 2
    assert "{" not in said, "a lost draft would look like a part of the answer"


def test_no_color_still_tells_accepted_drafts_apart(race, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    said = shown(race, rejected=True, force_terminal=True, width=80, color_system="standard")
    codes = {code for codes in re.findall(r"\x1b\[([\d;]+)m", said) for code in codes.split(";")}
    assert {"1", "9"} <= codes
    assert not {code for code in codes if code.startswith(("3", "4"))}, "no colors"


def test_answer_cannot_command_the_terminal(target, tiny_tokenizer, by_script):
    tokens = tiny_tokenizer.encode("a\x1b[2Jb\x07\n", add_special_tokens=False)
    side = Side("m", Scripted(target, [Step([t]) for t in tokens]), len(tokens), EOS, Detokenizer(tiny_tokenizer))
    side.begin([1])
    while not side.done:
        side.advance()
    assert side.answer == "a\x1b[2Jb\x07\n"
    assert generate.styled(side).plain == "a⟨U+001B⟩[2Jb⟨U+0007⟩\n"


def test_closing_lines_tell_rates_and_where_the_outputs_part(target, tiny_tokenizer, by_script):
    scripts = {"vanilla": [[65], [66], [67], [68]], "m": [[65], [66, 70, 68]]}
    sides = [
        Side(
            label,
            Scripted(target, [Step(s, len(s) - 1, len(s) - 1) for s in script]),
            4,
            EOS,
            Detokenizer(tiny_tokenizer),
        )
        for label, script in scripts.items()
    ]
    for side in sides:
        side.begin([1])
        while not side.done:
            side.advance()
    sides[0].said.decode_s, sides[1].said.decode_s = 6.0, 2.0
    race = Generation(RunConfig(), "tiny", [1], sides)
    first, second = generate.closing_lines(race)
    assert first == "vanilla: 4 tokens, 0.5 tok/s, 3 steps, CR 1.00"
    assert second.startswith(
        "m: 4 tokens, 1.5 tok/s, 1 step, CR 3.00, speedup 3.00x, output NOT vanilla's from token 3"
    )


def test_answer_of_one_token_has_no_rate(setting, capsys):
    found = answered(setting, capsys, PROMPT, "--max-new-tokens", "1")
    assert found["speedup_decode"] is None
    assert {side["tok_per_s"] for side in found["sides"].values()} == {None}
    assert ask(setting, PROMPT, "--max-new-tokens", "1") == 0
    assert "1 token, - tok/s, 0 steps, CR -, speedup -" in capsys.readouterr().out
