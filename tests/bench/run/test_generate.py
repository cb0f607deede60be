"""One prompt, two sides, in turns: the answers are those of whole decodes, and the screen shows them as they are."""

from __future__ import annotations

import io
import json
import random
import re
import sys
from dataclasses import replace

import pytest

import methods
from bench.cli import main
from bench.config import RunConfig
from bench.drafting import loop
from bench.drafting.loop import decode
from bench.drafting.sequence import Sequence, Step
from bench.figures.race import Piece, Race
from bench.run import generate
from bench.run.generate import ACCEPTED, BONUS, REJECTED, Detokenizer, Generation, Side
from bench.typed_json import read
from methods.vanilla import Vanilla

EOS = frozenset({258})
PROMPT = "Praise the zucchini harvest."
PROMPT_TOKENS = 3  # of the race


def ask(setting, *flags: str) -> int:
    return main(["generate", "--model", str(setting.model), "--method", setting.kangaroo, *flags])


def answered(setting, capsys, *flags: str) -> dict:
    assert ask(setting, "--json", *flags) == 0
    return json.loads(capsys.readouterr().out)


class Scripted(Vanilla):
    """Emits given steps, the first of which is the prefill's; its target is only asked for its device."""

    def __init__(self, target, steps: list[Step]):
        super().__init__(target, None)
        self.steps = [replace(step, marks=(0.0, 0.0, 0.0)) for step in steps]


@pytest.fixture
def by_script(monkeypatch):
    """Let the loop take its steps from the methods' scripts."""

    def opened(method, prompt, sampler=None):
        return Sequence([*prompt, method.steps.pop(0).emitted[0]], len(prompt), cache=None)

    def stepped(method, sequences, budgets, *_):
        return [method.steps.pop(0)]

    monkeypatch.setattr(loop, "open_sequence", opened)
    monkeypatch.setattr(loop, "speculate", stepped)


@pytest.fixture
def target(tiny_model, tiny_decoder):
    return tiny_decoder(*tiny_model("tied"))


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["plain", "Zürich, 5 €", "😀 family 👨‍👩‍👧", "你好世界", "a\n\tb"])
def test_unfinished_characters_are_held_back_until_they_are_complete(tiny_tokenizer, text):
    detokenizer, said = Detokenizer(tiny_tokenizer), ""
    for token in tiny_tokenizer.encode(text, add_special_tokens=False):  # a token a byte
        said += detokenizer.push(token)
        assert text.startswith(said)
    assert said + detokenizer.rest() == text
    assert detokenizer.rest() == ""


def test_bytes_that_never_become_a_character_come_out_in_the_end(tiny_tokenizer):
    rng = random.Random(1)
    for _ in range(50):
        tokens = [rng.randrange(256) for _ in range(30)]
        detokenizer = Detokenizer(tiny_tokenizer)
        pieces = [detokenizer.push(token) for token in tokens]
        assert "".join(pieces) + detokenizer.rest() == tiny_tokenizer.decode(tokens)


@pytest.mark.parametrize("text", ["€5", "😀b", "你好世界"])
def test_characters_of_a_byte_fallback_are_held_back_too(text):
    class ByteFallback:
        """As SentencePiece's: while bytes make no character, each of them is a replacement character."""

        def decode(self, ids, skip_special_tokens):
            try:
                return bytes(ids).decode()
            except UnicodeDecodeError:
                return "\ufffd" * len(ids)

    detokenizer, said = Detokenizer(ByteFallback()), ""
    for byte in text.encode():
        said += detokenizer.push(byte)
        assert text.startswith(said)
    assert said == text


def test_special_tokens_are_not_shown_and_a_look_ahead_takes_nothing_in(tiny_tokenizer):
    detokenizer = Detokenizer(tiny_tokenizer)
    a, b = tiny_tokenizer.encode("ab", add_special_tokens=False)
    assert detokenizer.push(a) == "a"
    assert detokenizer.alone(b) == "b"
    assert detokenizer.push(258) == ""
    assert detokenizer.push(b) == "b"


def test_word_keeps_the_space_that_stands_before_it():
    class Words:
        """As SentencePiece: the first word of what is decoded loses its space."""

        def decode(self, ids, skip_special_tokens):
            return "".join(f" w{i}" for i in ids).removeprefix(" ")

    detokenizer = Detokenizer(Words())
    assert [detokenizer.push(i) for i in (1, 2, 3)] == ["w1", " w2", " w3"]
    assert detokenizer.alone(7) == " w7"


# --- sides -----------------------------------------------------------------------------------------------------------


def test_each_side_answers_as_a_whole_decode_would(setting, capsys, hf_greedy):
    found = answered(setting, capsys, PROMPT, "--max-new-tokens", "24")
    prompt = setting.chat.prompt([], PROMPT)
    expected = hf_greedy(setting.hf, prompt, 24, EOS)
    vanilla, kangaroo = found["sides"]["vanilla"], found["sides"][setting.kangaroo]
    assert vanilla["token_ids"] == kangaroo["token_ids"] == expected
    assert found["identical"] is True
    assert found["prompt_tokens"] == len(prompt)
    assert found["sampling"] is None
    assert kangaroo["finish"] == ("eos" if expected[-1] in EOS else "length")
    assert kangaroo["text"] == setting.chat.tokenizer.decode(expected, skip_special_tokens=True)
    for side in (vanilla, kangaroo):
        count = len(expected) - 1
        assert sum(side["per_step_emitted"]) == count
        assert side["tok_per_s"] == pytest.approx(count / side["decode_s"])
        assert side["compression_rate"] == pytest.approx(count / len(side["per_step_emitted"]))
    assert 0 < sum(kangaroo["per_step_accepted"]) < sum(kangaroo["per_step_drafted"])
    assert found["speedup_decode"] == pytest.approx(kangaroo["tok_per_s"] / vanilla["tok_per_s"])


def test_samples_follow_the_seed_and_are_not_compared(setting, capsys):
    flags = [PROMPT, "--max-new-tokens", "12", "--temperature", "1", "--top-k", "20"]
    runs = [answered(setting, capsys, *flags, "--seed", seed) for seed in ("1", "1", "2")]
    said = [[side["token_ids"] for side in run["sides"].values()] for run in runs]
    assert said[0] == said[1] != said[2]
    assert runs[0]["identical"] is None
    assert runs[0]["sampling"] == {"temperature": 1.0, "top_p": 1.0, "top_k": 20, "seed": 1}


def test_the_side_whose_clock_is_behind_goes_next(target, tiny_tokenizer, monkeypatch):
    """A step of the first side takes 3 s, of the second 1 s: three of the second's for one of the first's."""
    clock, went = [0.0], []

    class Slow(Vanilla):
        seconds = 3.0

        def propose_text(self, context, budget):
            went.append(self.seconds)
            clock[0] += self.seconds
            return super().propose_text(context, budget)

    class Quick(Slow):
        seconds = 1.0

    monkeypatch.setattr(loop, "now_s", lambda device: clock[0])
    sides = [Side(m.__name__, m(target, None), 5, frozenset(), Detokenizer(tiny_tokenizer)) for m in (Slow, Quick)]
    monkeypatch.setattr(generate, "decode", lambda *given: None)
    Generation(RunConfig(), "tiny", [1, 2, 3], sides).run()
    assert went == [3, 1, 1, 1, 3, 1, 3, 3]
    assert [side.said.decode_s for side in sides] == [12.0, 4.0]
    assert [side.tok_per_s for side in sides] == [pytest.approx(1 / 3), 1.0]


def test_warm_up_is_not_counted_and_changes_nothing(target, tiny_tokenizer):
    side = Side("vanilla", Vanilla(target, None), 6, frozenset(), Detokenizer(tiny_tokenizer))
    other = Side("other", Vanilla(target, None), 6, frozenset(), Detokenizer(tiny_tokenizer))
    Generation(RunConfig(), "tiny", [5, 6, 7], [side, other]).run()
    assert side.token_ids == decode(Vanilla(target, None), [5, 6, 7], 6, frozenset()).token_ids
    assert len(side.steps) == 5


def test_what_follows_eos_is_cut_from_a_step(target, tiny_tokenizer, by_script):
    steps = [Step([65]), Step([66, 258, 67, 68], drafted=4, accepted=3)]
    side = Side("m", Scripted(target, steps), 50, EOS, Detokenizer(tiny_tokenizer))
    side.begin([1])
    side.advance()
    assert side.done
    assert side.token_ids == [65, 66, 258]
    assert (side.steps[0].emitted, side.steps[0].accepted) == ([66, 258], 2)
    assert [style for piece, style in side.text if piece] == [BONUS, ACCEPTED]


def test_lost_drafts_stand_before_the_token_that_beat_them(target, tiny_tokenizer, by_script):
    step = Step([66, 67], drafted=3, accepted=1, rejected=[70, 71])
    side = Side("m", Scripted(target, [Step([65]), step]), 50, EOS, Detokenizer(tiny_tokenizer))
    side.begin([1])
    side.advance()
    assert [(piece, style) for piece, style in side.text if piece] == [
        ("b", BONUS),
        ("c", ACCEPTED),
        ("g", REJECTED),
        ("h", REJECTED),
        ("d", BONUS),
    ]
    assert side.answer == "bcd"


def test_text_that_is_held_back_comes_out_when_the_first_token_ends_the_answer(target, tiny_tokenizer, by_script):
    half = tiny_tokenizer.encode("é", add_special_tokens=False)[0]
    side = Side("m", Scripted(target, [Step([half])]), 1, EOS, Detokenizer(tiny_tokenizer))
    side.begin([1])
    assert side.done
    assert side.answer == tiny_tokenizer.decode([half]) == "\ufffd"
    assert [piece.text for piece in side.pieces] == ["\ufffd"]


def test_race_has_a_piece_for_each_token_at_its_own_sides_time(target, tiny_tokenizer, by_script, monkeypatch):
    clock = [0.0]

    def now_s(device):
        clock[0] += 0.5
        return clock[0]

    monkeypatch.setattr(loop, "now_s", now_s)
    first, second = tiny_tokenizer.encode("é", add_special_tokens=False)
    steps = [Step([65]), Step([66, first], drafted=1, accepted=1), Step([second])]
    sides = [Side(label, Scripted(target, steps), 4, EOS, Detokenizer(tiny_tokenizer)) for label in ("vanilla", "m")]
    monkeypatch.setattr(generate, "decode", lambda *given: None)
    generation = Generation(RunConfig(), "tiny", [1], sides, "Why?")
    generation.run()
    race = generation.race
    assert (race.prompt, race.model, race.dtype, race.device) == ("Why?", "tiny", "float32", "cpu")
    for side in race.sides:
        # Between two looks at the clock pass 0.5 s: once for the prompt, once for each step.
        assert side.pieces == [Piece(0.5, "b"), Piece(1.0, "c", True), Piece(1.0, ""), Piece(1.5, "é")]
        assert (side.tokens, side.wall_s) == (4, 1.5)


# --- the command line ------------------------------------------------------------------------------------------------


def test_prompt_comes_from_standard_input_where_none_is_given(setting, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
    piped = answered(setting, capsys, "--max-new-tokens", "6")
    given = answered(setting, capsys, PROMPT, "--max-new-tokens", "6")
    assert piped["sides"]["vanilla"]["token_ids"] == given["sides"]["vanilla"]["token_ids"]


def test_standard_input_of_another_encoding_is_told_in_a_sentence(setting, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    assert ask(setting) == 2
    assert "error: the prompt is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([" \n"], "the prompt is empty"),
        (["caf\udce9"], "the prompt is not UTF-8"),
        (["hi", "--method", "kangaro"], "unknown method 'kangaro', did you mean 'kangaroo'"),
        (["hi", "--method", "hf-generate"], "'hf-generate' is a peer, which brings its own loop"),
        (["hi", "--method", "vanilla"], "vanilla always takes part in generate: name the method to compare with"),
        (["hi", "--method", "all"], "generate takes one method, not all of them; give one of dflash"),
        (["hi", "--json", "--rejected"], "--rejected: --json has no text of drafts"),
        (["hi", "--model", "no/such/folder"], "unknown model 'no/such/folder'"),
        (["hi", "--max-new-tokens", "0"], "--max-new-tokens 0 is too small"),
        (["hi", "--top-k", "5"], "for sampling"),
        (["x" * 600], r"the prompt's \d+ tokens leave no room in the context of 512"),
    ],
)
def test_mistakes_are_told_in_a_sentence(setting, capsys, flags, told):
    assert ask(setting, *flags) == 2
    printed = capsys.readouterr()
    assert re.search(f"^error: .*{told}", printed.err, re.MULTILINE)
    assert printed.out == ""


def test_faults_of_an_adapters_config_are_reported_before_the_model_is_loaded(
    setting, tiny_adapter, monkeypatch, capsys
):
    folder = tiny_adapter(setting.hf, changes={"hidden_size": 96})
    monkeypatch.setattr("bench.models.loading.load_decoder", None)
    assert main(["generate", "Hi", "--model", str(setting.model), "--method", f"kangaroo:weights={folder}"]) == 2
    assert "is for another model: its hidden size is 96" in capsys.readouterr().err


def test_limit_shrinks_to_what_the_context_leaves_and_says_so(setting, capsys):
    prompt = "x" * 470
    left = 512 - len(setting.chat.prompt([], prompt))
    assert 0 < left < 40
    assert ask(setting, "--json", prompt, "--max-new-tokens", "40") == 0
    printed = capsys.readouterr()
    assert f"leaves room for {left} new tokens" in printed.err
    assert len(json.loads(printed.out)["sides"]["vanilla"]["token_ids"]) <= left


def test_trees_and_heads_work_too(setting, capsys, tiny_heads):
    found = answered(setting, capsys, PROMPT, "--method", f"medusa:weights={tiny_heads(setting.hf)},tree=0/1/0-0")
    assert found["identical"] is True
    assert methods.BASELINE in found["sides"]


def test_help_teaches_with_examples(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    said = capsys.readouterr().out
    assert 'run_bench.py generate "' in said
    assert "--json < prompt.txt" in said


def test_recording_is_written_and_read_back(setting, tmp_path, capsys):
    file = tmp_path / "new" / "race.json"
    found = answered(setting, capsys, PROMPT, "--max-new-tokens", "12", "--record", str(file))
    race = read(Race, file)
    assert (race.prompt, race.model, race.device) == (PROMPT, found["model"], "cpu")
    assert [side.name for side in race.sides] == list(found["sides"])
    for side, said in zip(race.sides, found["sides"].values(), strict=True):
        assert side.tokens == len(side.pieces) == len(said["token_ids"])
        assert "".join(piece.text for piece in side.pieces) == said["text"]
        assert sum(piece.accepted for piece in side.pieces) == sum(said["per_step_accepted"])
        times = [piece.t_s for piece in side.pieces]
        assert times == sorted(times)
        assert times[0] == said["prefill_s"]
        assert times[-1] == side.wall_s == said["prefill_s"] + said["decode_s"]
    assert list(file.parent.iterdir()) == [file]


def test_recording_that_cannot_be_written_is_refused_before_loading(setting, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bench.models.loading.load_decoder", None)
    assert ask(setting, PROMPT, "--record", str(tmp_path)) == 2
    assert f"--record {tmp_path} is a folder: give the path of a file" in capsys.readouterr().err
