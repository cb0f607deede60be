"""Mutations of every kind of file, drawn with a seed: what reads them succeeds, or says what is wrong in a sentence."""

from __future__ import annotations

import functools
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import methods
from bench import questions
from bench.engine.weights import DecoderConfig
from bench.errors import UserError
from bench.figures import metrics, stats
from bench.figures.compare import compare
from bench.figures.engine_record import read_engine
from bench.figures.index import entries_of, read_index, write_entries
from bench.figures.metrics import summarize
from bench.figures.plausible import check_folder
from bench.figures.published import PUBLISHED, read_source
from bench.figures.records import read_records, read_token_texts, write_json
from bench.figures.summary import read_summary
from bench.lab.projection import project
from bench.models import checkpoints, config_files
from bench.models.checkpoints import Checkpoint
from bench.questions import Question
from bench.report import figures_of, sweep_page, terminal_table
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
from tests import site_runs
from tests.answer_files import spell
from tests.bench.figures import test_compare
from tests.bench.lab.test_projection import ENGINE, PAPER
from tests.test_bad_records import ANSWER_LINES, QUESTION_LINES, RAW, SCORES, SWEEP, a_run, some_turns, spelled
from tests.test_bad_records import recorded as recorded

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
    write_entries(folder / "index.json", entries_of(records, summary, "", check_folder(folder), None))
    site_pages.pages(read_index(folder / "index.json").entries)
    exchange.export(folder, folder / "exported", spell)
    asked = [Question(i, "qa", ("?",)) for i in range(4)]
    resume.finished_turns(folder, asked, lambda question: list(run.methods))


def read_site(folder: Path) -> None:
    """What a report and a site compute from a run in batches or over an axis."""
    run, summary, turns = figures_of(folder)
    terminal_table(summary)
    sections(run, summary, [], turns=turns, token_texts={})
    write_entries(folder / "index.json", entries_of((run, turns), summary, "", check_folder(folder), None))
    site_pages.pages(read_index(folder / "index.json").entries)


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
    "run.json": (300, read_run_and_turns),
    "turns.jsonl": (350, read_run_and_turns),
    "batched/run.json": (30, lambda folder: read_site(folder / "batched")),
    "batched/batches.jsonl": (50, lambda folder: read_site(folder / "batched")),
    "axis/run.json": (30, lambda folder: read_site(folder / "axis")),
    "axis/turns.jsonl": (40, lambda folder: read_site(folder / "axis")),
    "pieces.json": (100, read_pages),
    "summary.json": (150, read_summary),
    "scores.json": (100, read_scores),
    "sweep.json": (100, sweep_page.read_sweep),
    "questions.jsonl": (150, read_questions),
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
    site_runs.write_run(recorded / "batched", *site_runs.batched())
    run = a_run(complete=True)
    run.config = {**run.config, "prompt_lengths": [256, 512]}
    turns = [replace(turn, at=at) for at in (256.0, 512.0) for turn in some_turns()]
    site_runs.write_run(recorded / "axis", run, turns)
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
