"""README and docs: every command is run on a tiny model, or says why not; every link leads somewhere."""

from __future__ import annotations

import functools
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

import methods
from bench.cli import COMMANDS, main
from bench.lab import engine_bench
from bench.models import conversation_files
from bench.models.checkpoints import resolve
from bench.train import prompts, training
from tests import pages
from tests.bench.train.test_kangaroo_training import Short
from tests.own_answers import write_conversations
from tests.pages import PAGES, PROGRAM, ROOT, Block, name_of
from tests.tiny import ONE_TURN, run_bench, short_prompt, write_questions

BLOCKS = [block for page in PAGES for block in pages.blocks(page)]
SMALL_RUN = "--model {MODEL} --questions {QUESTIONS} --max-new-tokens 6 --limit 1 --device cpu --threads 1"
# What makes a command small: flags that are added to it.
SMALL = {
    "run": f"{SMALL_RUN} --tasks all",
    "sweep": SMALL_RUN,
    "generate": "--model {MODEL} --max-new-tokens 6",
    "bench-engine": "--model {MODEL} --context 256 --repeats 1",
    "train": "--model {MODEL} --tokens 200 --epochs 1 --decontaminate mini",
    "train conversations": "--model {MODEL} --tokens 200",
    "train collect": "--model {MODEL} --decontaminate mini",
}
SMALL_TRAININGS = "--train-tokens 200 --train-epochs 1"  # of a sweep
KEPT = ("--questions", "--tasks")  # of a command that brings its own file of questions
FOLDERS = ("RUN_ID", "BASE", "NEW")  # runs that pages write as if they were there
COMMAND = (PROGRAM, "roobench")


# --- what a page may hold --------------------------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 150


def test_there_is_a_page_for_every_topic_and_the_index_names_them_all():
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in pages.links(index)}
    documents = {page for page in PAGES if page.is_relative_to(ROOT / "docs")} - {index}
    assert len(documents) >= 10
    assert documents <= linked


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_in_blocks_that_tests_see(page):
    kinds = {"bash", "python", "json", "markdown", ""}
    for token in pages.tokens_of(page):
        assert token.type != "code_block", f"indented code, which no test runs: {token.content}"
        if token.type == "fence":
            assert token.info in kinds, token.info
            assert token.info or not re.search(r"roobench(?!/)", token.content), "commands belong into a block of bash"


@pytest.mark.parametrize("page", pages.LINKING, ids=name_of)
def test_links_lead_somewhere(page):
    for link in pages.links(page):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        if anchor:
            assert anchor in pages.anchors(target), link


def test_the_map_names_files_that_exist():
    layout = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Layout", 1)[1].split("```")[1]
    folder = ROOT
    for line in layout.strip().splitlines():
        head = re.match(r"(  )?([\w/.]+)", line)
        if head:
            folder = (ROOT / "bench" if head[1] else ROOT) / head[2]
            assert folder.exists(), head[2]
        for name in re.findall(r"\b\w+\.(?:py|sh)\b", line):
            assert list((folder if folder.is_dir() else ROOT).rglob(name)), f"{name} is not in {folder}"


# --- commands --------------------------------------------------------------------------------------------------------


def ours() -> Iterator[tuple[str, ...]]:
    """The arguments of every call of the program on all pages, in blocks and in running text."""
    for block in BLOCKS:
        yield from (words[1:] for words in block.commands if words[0] in COMMAND)
    for page in PAGES:
        for code in pages.inline_code(page):
            if code.partition(" ")[0] in COMMAND and " " in code and "..." not in code:
                (words,) = pages.commands_in(code)
                yield words[1:]


@pytest.mark.parametrize("given", sorted(set(ours())), ids=" ".join)
def test_the_program_takes_the_command(given, install, tmp_path, monkeypatch):
    """Also where no test runs it: its flags, methods and knobs are there."""
    install(dict(pages.all_examples()))
    monkeypatch.chdir(tmp_path)
    for word in given:
        if word.endswith(".json"):  # what an earlier command of the page has written
            Path(word).touch()
    given = tuple(word for word in given if word != "--help")
    command, rest = ("run", given) if not given or given[0] not in COMMANDS else (given[0], given[1:])
    module = importlib.import_module(f"bench.commands.{COMMANDS[command]}")
    options = vars(module.parser().parse_args(rest))
    asked = options.get("method") or ()
    for label in [asked] if isinstance(asked, str) else asked:
        if label not in ("all", "my-method"):
            methods.parse(label)


@pytest.mark.parametrize("page", [page for page in PAGES if list(pages.blocks(page))], ids=name_of)
def test_the_commands_of_a_page_work(page, scene, install):
    install(pages.examples(page))
    for block in pages.blocks(page):
        if block.why_not is None:
            for words in block.commands:
                scene.run(block, words)


def test_a_block_that_is_not_run_says_why():
    reasons = {block.why_not for block in BLOCKS if block.why_not is not None}
    assert all(len(reason.split()) >= 3 for reason in reasons), reasons
    assert sum(len(block.commands) for block in BLOCKS if block.why_not is None) > 30


class Scene:
    """A folder to run commands in, on a tiny model."""

    def __init__(self, folder: Path, model: Path, questions: str):
        self.folder, self.values, self.runs = folder, {"MODEL": str(model), "QUESTIONS": questions}, 0

    def run(self, block: Block, words: tuple[str, ...]) -> None:
        """Run a command of a page; fails where nobody knows how."""
        where = f"{name_of(block.page)}, line {block.line}: {' '.join(words)}"
        if words[0] in COMMAND:
            assert main(self.small(words[1:])) == 0, where
        elif words[0] == "make":
            self.make(words, where)
        elif words[:1] == (".venv/bin/python",) and words[1].startswith("scripts/"):
            done = subprocess.run([sys.executable, ROOT / words[1], *words[2:]], cwd=self.folder, check=False)
            assert done.returncode == 0, where
        else:
            pytest.fail(f"{where}: mark the block with `<!-- not run: REASON -->`, or teach this test to run it")

    def small(self, given: tuple[str, ...]) -> list[str]:
        """The command with what makes it small."""
        command = given[0] if given and given[0] in COMMANDS else "run"
        if command == "sweep" and "--grid" not in given:
            return list(given)  # redrawn
        added = SMALL.get(" ".join(given[:2]), SMALL.get(command, "")).split()
        if any(word.startswith("train.") for word in given):
            added += SMALL_TRAININGS.split()
        if command == "run" and "--out" not in given:  # runs that begin in one second have one name
            self.runs += 1
            added += ["--out", f"run-{self.runs}"]
        pairs = zip(added[::2], added[1::2], strict=True)
        own = "my-questions.jsonl" in given
        flags = [word for flag, value in pairs if not (own and flag in KEPT) for word in (flag, value)]
        return [*given, *(word.format(**self.values) for word in flags)]

    def make(self, words: tuple[str, ...], where: str) -> None:
        """Run the last line of what make would do, which is the program's or the tests'."""
        dry = [word for word in words if not word.startswith(("PYTHON=", "PIP_ARGS="))]
        # Also when make runs these tests, whose flags would be inherited.
        alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        done = subprocess.run([*dry, "--dry-run"], cwd=ROOT, env=alone, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{where}: {done.stderr}"
        (last,) = pages.commands_in(done.stdout.splitlines()[-1])
        if last[0] == PROGRAM:
            assert main(self.small(last[1:])) == 0, where
        else:
            assert last[:3] == (".venv/bin/python", "-m", "pytest"), where


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Make examples of the pages methods of the project."""

    def write(examples: dict[str, str]) -> None:
        for name, code in examples.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code, encoding="utf-8")
        if examples:
            monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path / "methods")])

    yield write
    for name in [name for name in sys.modules if name.startswith(("methods.echo", "methods.linear"))]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def tiny_world(tmp_path_factory, tiny_checkpoint, tiny_model, tiny_adapter, tiny_heads, tiny_weights):
    """A tiny model with weights of every method where runs look, and a finished run of it."""
    folder = tmp_path_factory.mktemp("world")
    hf, model = tiny_model("tied", True)[1], tiny_checkpoint("tied", True).folder
    ranks = (torch.zeros(12, 3), [12], [0])
    weights = folder / "weights" / model.name
    for name, made in {
        "kangaroo": tiny_adapter(hf),
        "kangaroo-paper": tiny_adapter(hf),
        "medusa": tiny_heads(hf, ranks=ranks),
        "eagle": tiny_weights("eagle", hf),
    }.items():
        shutil.copytree(made, weights / name)
    questions = write_questions(folder / "questions.jsonl", ONE_TURN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROOBENCH_CACHE", str(folder / "cache"))
        patch.setattr("bench.drafting.knobs.WEIGHTS_ROOT", folder / "weights")
        patch.setattr("bench.questions.MINI", Path(questions))
        patch.setattr("bench.questions.fetch_official", lambda *given: Path(questions))
        patch.setattr("bench.report.figures.write_figures", lambda summary, folder: [])
        patch.setattr("bench.run.environment.psutil.cpu_percent", lambda interval: 0.0)
        patch.setattr(prompts, "prompt", short_prompt)
        patch.setattr(training, "Recipe", Short)
        patch.setattr(engine_bench, "_BUFFER_BYTES", 1 << 20)
        patch.setattr(engine_bench, "Effort", functools.partial(engine_bench.Effort, rounds=1, new_tokens=6))
        patch.setattr("webbrowser.open", lambda address: True)
        patch.setattr(conversation_files, "FOLDER", folder / "conversations")
        answers = [list(range(60, 90))] * 3
        write_conversations(folder / "conversations", resolve(str(model), log=print), answers, [4] * 3)
        assert run_bench(model, questions, folder / "run", "--method", "kangaroo") == 0
        yield folder, model, questions


@pytest.fixture
def scene(tiny_world, tmp_path, monkeypatch):
    """An empty folder with the files that pages speak of."""
    world, model, questions = tiny_world
    for name in FOLDERS:
        shutil.copytree(world / "run", tmp_path / "results" / "runs" / name)
    write_questions(tmp_path / "my-questions.jsonl", (1, "support", ("How do I reset my password?",)))
    (tmp_path / "templates").symlink_to(ROOT / "templates")
    monkeypatch.chdir(tmp_path)
    return Scene(tmp_path, model, questions)
