"""Whatever is read from outside may be damaged, edited or made up: every outcome is success or one sentence.

First a table of damaged records through every command that reads them; then mutations of every kind of file, drawn
with a seed, through the functions that read them.
"""

from __future__ import annotations

import functools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import methods
from bench import questions
from bench.cli import main
from bench.engine.weights import DecoderConfig
from bench.errors import UserError
from bench.figures import metrics, stats
from bench.figures.compare import compare
from bench.figures.engine_record import read_engine
from bench.figures.index import entries_of, read_index, write_entries
from bench.figures.metrics import summarize
from bench.figures.plausible import check_folder
from bench.figures.published import PUBLISHED, read_source
from bench.figures.records import MethodInfo, Run, Turn, read_records, read_token_texts, write_json, write_turns
from bench.figures.summary import read_summary
from bench.lab.projection import project
from bench.models import checkpoints, config_files
from bench.models.checkpoints import Checkpoint
from bench.questions import Question
from bench.report import sweep_page, terminal_table
from bench.report.sections import sections
from bench.report.site import pages as site_pages
from bench.run import folder as run_folder
from bench.run import resume
from bench.spec_bench import exchange
from bench.spec_bench.compare_answers import compare_answers
from bench.spec_bench.foreign import foreign_summary
from bench.train.scores import read_scores
from methods.kangaroo.adapter import load_adapter
from methods.medusa.heads import load_heads
from tests.answer_files import row, spell
from tests.bench.figures import test_compare
from tests.bench.lab.test_projection import ENGINE, PAPER
from tests.tiny import files_of

ALL = ("report", "compare", "export", "history", "--resume")
QUESTION_LINES = "".join(
    json.dumps({"question_id": i, "category": category, "turns": turns, "reference": ["x"]}) + "\n"
    for i, category, turns in ((0, "writing", ["Hello?", "And?"]), (1, "qa", ["Who?"]), (2, "", ["What?"]))
)
ANSWER_LINES = "".join(
    json.dumps(row(i, [9, 5], [1.0, 2.0], "writing", idxs=[4, 2], accept_lengths=[2, [3, 1]])) + "\n" for i in range(3)
)
SCORES = {
    "model": "tiny", "model_sha256": "0" * 64, "parameters": 7,
    "data": {"conversations": 3, "tokens": 90, "answer_tokens": 50, "mixture": {"qa": 1.0}, "held_out": 1},
    "epochs": [{"epoch": 1, "loss": 2.5, "scores": {"agreement": 0.4}, "by_kind": {"qa": 0.4}}],
}  # fmt: skip
SWEEP = {
    "schema": 1, "method": "kangaroo", "axes": [{"name": "gamma", "values": ["1", "2"]}],
    "variants": [{"label": f"kangaroo:gamma={i}", "values": [str(i)], "training": {"seed": 0}} for i in (1, 2)],
}  # fmt: skip


def a_run(**more: Any) -> Run:
    """One that was interrupted, so that it could go on."""
    costs = {"shallow": 0.1, "draft": 0.05, "verify": {"1": 1.0, "4": 1.5}, "rest": -0.01}
    described = MethodInfo("method", True, 7, {"gamma": 3}, {"parts": ["x", "y"], "probe_windows": 2}, costs)
    settings = {"method": ["kangaroo"], "rounds": 1, "probe_windows": 2, "max_new_tokens": 9, "temperature": 0.0}
    own = {
        "methods": {"vanilla": MethodInfo("vanilla", True, 0, {}), "kangaroo": described},
        "config": settings,
        "provenance": {"commit": "c" * 40, "packages": {"torch": "1"}, "started": "2026-11-22T07:10:13+00:00"},
        "complete": False,
    }
    return test_compare.a_run(**(own | more))


def some_turns() -> list[Turn]:
    turns = test_compare.some_turns(1)[:8]
    for turn in turns:
        turn.text, turn.draft_s, turn.verify_s, turn.prompt_digest = "a text", 0.1, 0.2, "0123456789abcdef"
        if turn.method == "kangaroo":
            steps = len(turn.per_step_emitted)
            turn.per_step_part, turn.per_step_rejected = [0, 1] * (steps // 2), [[5]] * steps
            turn.accepted_confidence, turn.rejected_confidence, turn.windows = [0.9], [0.2], [2, 1, 0]
    return turns


@pytest.fixture
def recorded(tmp_path) -> Path:
    folder = tmp_path / "recorded"
    write_json(folder / "run.json", a_run())
    write_turns(folder / "turns.jsonl", some_turns())
    write_json(folder / "pieces.json", {str(token): f"t{token}" for token in range(10)})
    return folder


# --- through the commands --------------------------------------------------------------------------------------------

DEEP, LONG = "[" * 100_000, "9" * 5_000
WHOLE_FILES = ["", "{", "[]", "null", DEEP, '{"a":' * 100_000, b"\xff\xfe{}", b"\xef\xbb\xbf{}"]
RUN_CHANGES = [
    ({"run_id": "../../x"}, "run_id: String should match"),
    ({"run_id": ".."}, "run_id: String should match"),
    ({"run_id": "a\nb"}, "run_id: String should match"),
    ({"run_id": "x" * 300}, "run_id: String should have at most 200 characters"),
    ({"moon": 1}, "moon: Unexpected"),
    ({"schema": 1}, "schema 1; this version reads 2"),
    ({"machine": None}, "machine: Input should be"),
    ({"model": "x"}, "model: Input should be"),
    ({"provenance": [1]}, "provenance: Input should be"),
    ({"provenance": {"started": "yesterday"}}, "provenance.started: Invalid isoformat string: 'yesterday'"),
    ({"provenance": {"sessions": [{"wall_s": -1}]}}, "provenance.sessions[0].wall_s: Input should be greater"),
    ({"wall_s": "@inf@"}, "wall_s: Infinity is not a number in JSON"),
    ({"wall_s": "@huge@"}, "wall_s: Input should be a finite number"),
    ({"config": {"rounds": "many"}}, "config: rounds: Input should be a valid integer, not 'many'"),
    ({"config": {"rounds": -1}}, "config: --rounds -1"),
    ({"config": {"seed": 10**400}}, "config.seed: an integer of 400 digits is out of range"),
    ({"config": {"seed": "@digits@"}}, "number out of range"),
    ({"dataset": {"questions": 10**400}}, "dataset.questions: Input should be less than or equal to"),
    ({"methods": {"vanilla": {"kind": "magic"}}}, "methods.vanilla.kind: String should match"),
    ({"methods": {"vanilla": {"kind": "vanilla", "lossless": 1}}}, "methods.vanilla.lossless: Input should be a valid"),
    ({"engine": {"weights": "@half@"}}, "half a character (a lone surrogate)"),
]
KANGAROO_CHANGES = [
    ({"notes": {"parts": [1]}}, "methods.kangaroo.notes.parts[0]: Input should be a valid string, not 1"),
    ({"notes": {"said": "@huge@"}}, "methods.kangaroo.notes.said: "),
    ({"notes": {"said": "@nan@"}}, "methods.kangaroo.notes.said: NaN is not a number in JSON"),
    ({"costs": {"shallow": 0, "draft": 0, "rest": 0, "verify": {"x": 1}}}, "methods.kangaroo.costs.verify.x"),
    ({"costs": {"shallow": 0, "draft": 0, "rest": 0, "verify": {}}}, "methods.kangaroo.costs.verify: "),
    ({"kind": "vanilla"}, "methods: vanilla and kangaroo are both of kind vanilla"),
]
TURN_CHANGES = [
    ({"method": "ghost"}, "method: 'ghost' is not in run.json"),
    ({"round": 1}, "round: 1 is beyond the run's 1 rounds"),
    ({"round": "0"}, "round: Input should be a valid integer, not '0'"),
    ({"turn": 2**60}, "turn: Input should be less than or equal to"),
    ({"question_id": 0, "task": "qa"}, "kangaroo answered question 0, turn 0, in round 0 before"),
    ({"task": "overall"}, "task: 'overall' is the name of the tasks' mean"),
    ({"token_ids": None}, "token_ids: Input should be"),
    ({"token_ids": []}, "token_ids: has 0 tokens, but 1 from the prefill"),
    ({"token_ids": [1, 2**40]}, "token_ids[1]: Input should be less than 2147483648"),
    ({"token_ids": ["@digits@"]}, "number out of range"),
    ({"decode_s": "fast"}, "decode_s: Input should be a valid number, not 'fast'"),
    ({"decode_s": -5.0}, "decode_s: Input should be greater than or equal to 0, not -5.0"),
    ({"decode_s": 1e300}, "decode_s: Input should be less than or equal to 1000000000, not 1e+300"),
    ({"decode_s": "@nan@"}, "decode_s: NaN is not a number in JSON"),
    ({"audit": {"verdict": "maybe"}}, "audit.verdict: String should match"),
    ({"per_step_emitted": [9, 1]}, "per_step_drafted: has 4 steps, but per_step_emitted has 2"),
    ({"per_step_s": [0.1]}, "per_step_s: has 1 steps, but per_step_emitted has 4"),
    ({"per_step_accepted": []}, "per_step_accepted: has 0 steps, but per_step_emitted has 4"),
    ({"per_step_emitted": [2**50, 1, 1, 1]}, "per_step_emitted: a step has more tokens than the answer's 9"),
    ({"per_step_part": [0, 1, 2, 0]}, "per_step_part: 2 is beyond the 2 members"),
    ({"accepted_confidence": [1.5]}, "accepted_confidence[0]: Input should be less than or equal to 1, not 1.5"),
    ({"prompt_digest": "x"}, "prompt_digest: String should match"),
    ({"moon": 1}, "moon: Unexpected"),
    ({"text": "@half@"}, "half a character (a lone surrogate)"),
]
RAW = {"@nan@": "NaN", "@inf@": "Infinity", "@huge@": "1e999", "@digits@": LONG, "@half@": '"\\ud83d"', "@deep@": DEEP}


def spelled(value: Any) -> str:
    """JSON with what `json` would not write."""
    text = json.dumps(value)
    for sign, raw in RAW.items():
        text = text.replace(f'"{sign}"', raw)
    return text


def refused(folder: Path, commands: tuple[str, ...], said: str, capsys, tmp_path: Path, monkeypatch) -> None:
    """Each command ends with status 2 and one sentence, and leaves the files as they are."""
    monkeypatch.chdir(tmp_path)
    before = files_of(folder)
    for command in commands:
        assert main([command, *[str(folder)] * (2 if command == "compare" else 1)]) == 2, command
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1, (command, told)
        assert told[0].startswith("error: ")
        assert said in told[0], command
        assert len(told[0]) < 600
    assert files_of(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize("content", WHOLE_FILES, ids=range(len(WHOLE_FILES)))
@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("run.json", ALL),
        ("turns.jsonl", ("report", "compare", "export", "history")),
        ("pieces.json", ("report", "export")),
    ],
)
def test_a_file_that_is_no_record(recorded, name, commands, content, capsys, tmp_path, monkeypatch):
    if name == "turns.jsonl" and not content:
        pytest.skip("a run that was killed before its first question")
    (recorded / name).write_bytes((content if isinstance(content, bytes) else content.encode()) + b"\n")
    refused(recorded, commands, str(recorded / name), capsys, tmp_path, monkeypatch)


@pytest.mark.parametrize(("kept", "said"), [(0, "has no turns"), (-40, "line 8: not a turn's record")])
def test_turns_that_a_complete_run_must_have(recorded, kept, said, capsys, tmp_path, monkeypatch):
    (recorded / "turns.jsonl").write_bytes((recorded / "turns.jsonl").read_bytes()[:kept])
    assert main(["report", str(recorded)]) == 0, "an interrupted run may lack them"
    capsys.readouterr()
    write_json(recorded / "run.json", a_run(complete=True))
    refused(recorded, ALL[:4], said, capsys, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["run.json", "turns.jsonl"])
@pytest.mark.parametrize("instead", ["folder", "nothing"])
def test_a_file_that_is_not_there(recorded, name, instead, capsys, tmp_path, monkeypatch):
    (recorded / name).unlink()
    if instead == "folder":
        (recorded / name).mkdir()
    commands = ALL if name == "run.json" else ALL[:4]
    refused(recorded, commands, name, capsys, tmp_path, monkeypatch)


@pytest.mark.parametrize(("change", "said"), RUN_CHANGES, ids=[said[:40] for _, said in RUN_CHANGES])
def test_a_changed_run(recorded, change, said, capsys, tmp_path, monkeypatch):
    run = json.loads((recorded / "run.json").read_text())
    (recorded / "run.json").write_text(spelled(run | change))
    refused(recorded, ALL, said, capsys, tmp_path, monkeypatch)


@pytest.mark.parametrize(("change", "said"), KANGAROO_CHANGES, ids=[said[:40] for _, said in KANGAROO_CHANGES])
def test_a_changed_method(recorded, change, said, capsys, tmp_path, monkeypatch):
    run = json.loads((recorded / "run.json").read_text())
    run["methods"]["kangaroo"] |= change
    (recorded / "run.json").write_text(spelled(run))
    refused(recorded, ALL, said, capsys, tmp_path, monkeypatch)


@pytest.mark.parametrize(("change", "said"), TURN_CHANGES, ids=[said[:40] for _, said in TURN_CHANGES])
def test_a_changed_turn(recorded, change, said, capsys, tmp_path, monkeypatch):
    lines = (recorded / "turns.jsonl").read_text().splitlines()
    lines[3] = spelled(json.loads(lines[3]) | change)
    (recorded / "turns.jsonl").write_text("\n".join(lines) + "\n")
    said = f"turns.jsonl, line 4: not a turn's record ({said}"
    refused(recorded, ("report", "compare", "export", "history"), said, capsys, tmp_path, monkeypatch)


def test_what_is_not_recorded_is_unknown_and_no_fault(recorded, tmp_path, capsys):
    """Records from before prompts had digests."""
    old = shutil.copytree(recorded, tmp_path / "old")
    lines = [json.loads(line) for line in (old / "turns.jsonl").read_text().splitlines()]
    assert [line.pop("prompt_digest") for line in lines] == ["0123456789abcdef"] * 8
    (old / "turns.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert {turn.prompt_digest for turn in read_records(old)[1]} == {""}
    assert main(["compare", str(old), str(recorded)]) == 0
    assert "differ" not in capsys.readouterr().out


def test_runs_of_other_prompts_are_refused_by_what_changed(tmp_path, capsys):
    turns = some_turns()
    for name in "bc":
        write_json(tmp_path / name / "run.json", a_run(model={"name": "m", "tokenizer_sha256": name * 64}))
        write_turns(tmp_path / name / "turns.jsonl", turns)
        turns[0].prompt_digest = "f" * 16
    asked = ["compare", str(tmp_path / "b"), str(tmp_path / "c")]
    prompt = "question 0 with 5 tokens, digest"
    assert main(asked) == 2
    told = capsys.readouterr().err
    assert "of different things (tokenizer: bbbbbbbbbbbb.. and cccccccccccc..; prompts: " in told
    assert f"prompts: {prompt} 0123456789abcdef and {prompt} ffffffffffffffff)" in told
    assert "--allow 'tokenizer' --allow 'prompts' if meant" in told
    assert main([*asked, "--allow", "tokenizer"]) == 2
    assert main([*asked, "--allow", "tokenizer", "--allow", "prompts"]) == 0
    assert "the runs differ in tokenizer" in capsys.readouterr().out


# --- mutations -------------------------------------------------------------------------------------------------------

VALUES = [
    None, True, False, -1, 0, 1, 3, 0.5, -0.5, 1e-300, 1e300, 2**53, 2**64, "", "x", "../x", "1", "overall", "é\u2028",
    [], {}, [[]], [None], [1, 2, 3], {"x": 1}, *RAW,
]  # fmt: skip


def entries(value: Any) -> list[tuple[Any, Any]]:
    """(container, key or index) of everything within a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(value, key) for key in keys] + [found for key in keys for found in entries(value[key])]


def changed_values(rng: random.Random, text: str) -> str:
    """JSON with one to three entries replaced, removed or added."""
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = entries(value)
        if not found:
            break
        container, key = rng.choice(found)
        new = rng.choice(VALUES)
        match rng.randrange(6):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[rng.choice(("moon", "", "1", "-1"))] = new
            case 1:
                container.append(new)
            case _:
                container[key] = new
    return spelled(value)


def changed_bytes(rng: random.Random, text: str) -> bytes:
    """A piece cut off, left out, doubled, or put in."""
    content = text.encode()
    a, b = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    put_in = rng.choice((b"\xff", b"\0", b"\n", b"[", b"}", b'"', b"\xef\xbb\xbf", b"-", b"9" * 400))
    return rng.choice(
        (content[:a], content[:a] + content[b:], content[:b] + content[a:], content[:a] + put_in + content[a:])
    )


def mutated(rng: random.Random, text: str, by_line: bool) -> bytes:
    if rng.random() < 0.2:
        return changed_bytes(rng, text)
    if not by_line:
        return changed_values(rng, text).encode()
    lines = text.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    match rng.randrange(8):
        case 0:
            lines.insert(place, rng.choice(lines))
        case 1:
            del lines[place]
        case _:
            lines[place] = changed_values(rng, lines[place]) + "\n"
    return "".join(lines).encode()


def read_run_and_turns(folder: Path) -> None:
    """Everything that commands compute from a run."""
    records = run, turns = read_records(folder)
    run_folder.earlier_run(folder)
    resume.recorded_settings(run)
    summary = summarize(run, turns)
    write_json(folder / "summary.json", summary)
    read_summary(folder)
    terminal_table(summary)
    sections(run, summary, [], turns=turns, token_texts=read_token_texts(folder))
    metrics.failed_throughout(run, turns)
    compare(records, records)
    project(ENGINE, [folder])
    write_entries(folder / "index.json", entries_of(run, summary, "", check_folder(folder), None))
    site_pages.pages(read_index(folder / "index.json").entries)
    exchange.export(folder, folder / "exported", spell)
    asked = [Question(i, "qa", ("?",)) for i in range(4)]
    resume.finished_turns(folder, asked, lambda question: list(run.methods))


def read_pages(folder: Path) -> None:
    read_token_texts(folder)
    sections(
        *((r := a_run()), summarize(r, some_turns()), []), turns=some_turns(), token_texts=read_token_texts(folder)
    )


def read_answer_files(folder: Path) -> None:
    path, base = folder / "answers.jsonl", folder / "base.jsonl"
    base.write_text(ANSWER_LINES)
    terminal_table(foreign_summary(base, [path]))
    terminal_table(foreign_summary(path, [base]))
    compare_answers(base, path, test_compare.Rules())


def read_questions(folder: Path) -> None:
    found = questions.load(str(folder / "questions.jsonl"))
    for task in found.tasks:
        assert found.select(questions.spelled(task)).questions
    found.select(limit=1).in_turns()


def read_model(folder: Path) -> None:
    DecoderConfig.from_hf(checkpoints.load_config(Checkpoint("x", folder, "0" * 64, None)))


def read_projection(folder: Path) -> None:
    project(read_engine(folder / "engine.json"), [PUBLISHED / "kangaroo_paper.json"])


def read_paper(folder: Path) -> None:
    read_source(folder / "paper.json")
    project(ENGINE, [folder / "paper.json"])


RECORDED = {"run.json", "turns.jsonl", "pieces.json"}
# File, how many mutations, what reads it. The recorded run's other files are beside its own.
READERS: dict[str, tuple[int, Callable[[Path], object]]] = {
    "run.json": (350, read_run_and_turns),
    "turns.jsonl": (400, read_run_and_turns),
    "pieces.json": (100, read_pages),
    "summary.json": (150, read_summary),
    "scores.json": (100, read_scores),
    "sweep.json": (100, sweep_page.read_sweep),
    "questions.jsonl": (200, read_questions),
    "answers.jsonl": (200, read_answer_files),
    "engine.json": (100, read_projection),
    "paper.json": (50, read_paper),
    "tree.json": (50, lambda folder: methods.parse(f"medusa:tree={folder / 'tree.json'}")),
    "kangaroo/config.json": (50, lambda folder: load_adapter(folder / "kangaroo", TARGET[0])),
    "medusa/config.json": (50, lambda folder: load_heads(folder / "medusa", TARGET[0])),
    "model/config.json": (60, lambda folder: read_model(folder / "model")),
    "model/generation_config.json": (40, lambda folder: config_files.end_tokens(folder / "model", None, 320)),
}
TARGET: list[Any] = []  # the tiny decoder that weights are read for


@pytest.fixture
def originals(recorded, tiny_model, tiny_decoder, tiny_adapter, tiny_heads, tiny_checkpoint) -> Path:
    """A folder with a good file of every kind."""
    config, model = tiny_model("tied", True)
    TARGET[:] = [tiny_decoder(config, model)]
    weights = {
        "kangaroo": tiny_adapter(model),
        "medusa": tiny_heads(model),
        "model": tiny_checkpoint("tied", True).folder,
    }
    for name, source in weights.items():
        shutil.copytree(source, recorded / name, ignore=shutil.ignore_patterns("model.safetensors", "token*"))
    (recorded / "model" / "generation_config.json").write_text('{"eos_token_id": [2, 7], "do_sample": false}')
    write_json(recorded / "summary.json", summarize(a_run(), some_turns()))
    texts = {"questions.jsonl": QUESTION_LINES, "answers.jsonl": ANSWER_LINES, "tree.json": "[[0], [1], [0, 0]]"}
    for name, value in (("engine", ENGINE), ("paper", PAPER), ("scores", SCORES), ("sweep", SWEEP)):
        texts[f"{name}.json"] = json.dumps(value)
    for name, text in texts.items():
        (recorded / name).write_text(text)
    return recorded


def test_two_thousand_mutations_are_drawn():
    assert sum(count for count, _ in READERS.values()) == 2000


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of transformers, about odd values
@pytest.mark.parametrize("name", READERS)
def test_mutations_are_read_or_refused_in_a_sentence(name, originals, monkeypatch):
    """Any other exception is a fault: it would be a traceback."""
    monkeypatch.setattr(stats, "estimates", functools.partial(stats.estimates, resamples=20))
    count, read = READERS[name]
    rng = random.Random(name)
    text = (originals / name).read_text()
    before = {path: path.read_bytes() for path in originals.rglob("*") if path.is_file()}
    read(originals)  # as it is, it can be read
    refusals = 0
    for number in range(count):
        shutil.rmtree(originals / "exported", ignore_errors=True)
        for path, content in before.items() if read is read_run_and_turns else ():  # which writes the turns anew
            if path.name in RECORDED:
                path.write_bytes(content)
        content = mutated(rng, text, by_line=name.endswith("jsonl"))
        (originals / name).write_bytes(content)
        try:
            read(originals)
        except UserError:
            refusals += 1
        except Exception as error:
            raise AssertionError(f"mutation {number} of {name}: {content[:2000]!r}") from error
    assert 0 < refusals < count
