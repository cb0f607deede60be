"""Wrong arguments end in one sentence and status 2, with nothing written, before torch is imported.

All cases of the table run in one process that cannot import torch; what a process does at its ends has processes of its
own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers")
LONG = "x" * 300
HUGE = str(10**12)
NOBODY = "~nosuchuser/x"
BYTE = "\udcff"  # how Python reads an argument that is not UTF-8
DRIVER = f"""
import contextlib, io, json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in {HEAVY}:
            raise AssertionError(f"{{name}} is imported")

sys.meta_path.insert(0, Blocked())
from bench.cli import main

found = []
for given in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(given)
        except SystemExit as error:
            status = error.code
        except BaseException as error:
            status = f"{{type(error).__name__}}: {{error}}"
    found.append((status, out.getvalue(), err.getvalue()))
json.dump(found, sys.stdout)
"""
NO_USER = "there is no such user's home"
RUN = [
    (["--method", "kangaro"], r"unknown method 'kangaro', did you mean 'kangaroo'\?; available: all, dflash, "),
    (["--method", "al"], r"unknown method 'al', did you mean 'all'\?"),
    (["--method", "none"], "unknown method 'none'"),
    (["--method", "all:gamma=2"], "'all' stands for every built-in method, alone and without knobs.*name one of "),
    (["--method", "pld+all"], "'all' stands for every built-in method"),
    (["--method", "kangaroo:gama=4"], "no knob 'gama=4', did you mean 'gamma'"),
    (["--method", "kangaroo:gamma=four"], "gamma='four' is not of type int"),
    (["--method", "kangaroo:gamma=-1"], "gamma=-1 must be at least 1 and at most 127"),
    (["--method", f"kangaroo:gamma={HUGE}"], "must be at least 1 and at most 127"),
    (["--method", "kangaroo:threshold=nan"], "threshold=nan must be in"),
    (["--method", "kangaroo:weights=absent"], "absent is neither a folder nor a Hugging Face id"),
    (["--method", "kangaroo:weights=file"], "kangaroo:weights=file: file is not a folder"),
    (["--method", f"kangaroo:weights={NOBODY}"], NO_USER),
    (["--method", f"medusa:weights={LONG}"], "File name too long: give another path"),
    (["--method", "pld+kangaroo:weights=absent"], "absent is neither a folder"),
    (["--method", "kangaroo", "--model", "model"], "no weights of kangaroo come with the project for model 'model'"),
    (["--method", "medusa:tree=absent.json"], "absent.json"),
    (["--method", f"medusa:tree={NOBODY}"], "home"),
    (["--method", "medusa:costs=1/2"], "costs='1/2' must be"),
    (["--method", f"pld:ngram={10**100}"], "knob ngram=10+ is out of range: at most 9007199254740992"),
    (["--method", "pld:ngram=2,ngram=3"], "knob ngram is given twice: leave one of them out"),
    (["--method", "medusa:tree=" + "9" * 5000], r"medusa:tree=9{,60}\.\. "),
    (["--limit", "9" * 5000], r"--limit: invalid int value: '9{59}\.\.$"),
    (["--method", "suffix:memory=for-ever"], "memory=for-ever must be question or run"),
    (["--method", "rest:corpus=absent"], "absent is not a folder: name a folder of text files, or own"),
    (["--method", "sam:corpus=absent+kangaroo"], "absent is not a folder: name a folder of text files, or own"),
    (["--method", "pld:stop=threshold"], "stop=threshold must be gain or never"),
    (["--method", "pld:ngram=0"], "ngram=0 must be in 1..64"),
    (["--method", "hf-prompt-lookup:tokens=0"], "tokens=0 must be at least 1"),
    (["--method", "hf-generate:tokens=4"], "no knob 'tokens=4'; it has none"),
    (["--method", "pld+hf-generate"], "'hf-generate' brings its own loop and cannot be part of 'pld.hf-generate'"),
    (["--peer", "kangaroo"], "'kangaroo' is a method, not a peer: ask for it with --method"),
    (["--peer", "hf-generte"], r"did you mean 'hf-generate'\?"),
    (["--peer", "all"], "'all' stands for every built-in method"),
    (["--peer", "none", "--peer", "hf-generate"], "--peer none and --peer hf-generate contradict each other"),
    (["--peer", "none", "--peer-limit", "3"], "--peer-limit: no peer takes part"),
    (["--model", "no/such/folder"], "unknown model 'no/such/folder'"),
    (["--model", "smolm2"], "did you mean"),
    (["--model", NOBODY], NO_USER),
    (["--model", LONG], "File name too long"),
    (["--model", "empty"], "empty is not a model's folder: it has no config.json"),
    (["--model", "file"], "file is not a GGUF file"),
    (["--model", "model", "--revision", "v2", "--method", "pld"], "takes no revision"),
    (["--questions", "absent.jsonl"], "questions 'absent.jsonl' cannot be read .No such file"),
    (["--questions", "empty"], "Is a directory"),
    (["--questions", NOBODY], NO_USER),
    (["--questions", LONG], "File name too long"),
    (["--questions", BYTE], r"cannot use the path '\\udcff': it is not UTF-8 text"),
    (["--tasks", "summarisation"], "did you mean 'summarization'"),
    (["--out", NOBODY], NO_USER),
    (["--out", LONG], "File name too long"),
    (["--out", BYTE], "it is not UTF-8 text"),
    (["--out", "file/below"], "Not a directory"),
    (["--out", "file"], "Not a directory; choose another folder with --out"),
    (["--out", ""], "it is empty"),
    (["--resume", "absent"], "absent is no run"),
    (["--resume", NOBODY], NO_USER),
    (["--threads", "100000"], "--threads 100000 is too large: at most 1024"),
    (["--threads", HUGE], "too large: at most"),
    (["--threads", "-1"], "too small: at least 0"),
    (["--rounds", "1000000000"], "--rounds 1000000000 is too large: at most 1000"),
    (["--limit", "0"], "--limit 0 is too small: at least 1"),
    (["--limit", "many"], "invalid int value: 'many'"),
    (["--peer-limit", "-1"], "--peer-limit -1 is too small: at least 0"),
    (["--max-new-tokens", HUGE], "too large: at most 1000000"),
    (["--probe-windows", "65"], "--probe-windows 65 is too large: at most 64"),
    (["--seed", "-1"], "--seed -1 is too small: at least 0"),
    (["--seed", HUGE], "too large"),
    (["--temperature", "1e-40"], "--temperature 1e-40 is too small to sample at: at least 0.001, or 0 for greedy"),
    (["--temperature", "nan"], "--temperature nan is no number"),
    (["--temperature", "inf"], "--temperature inf is too large: at most 100"),
    (["--temperature", "-1"], "--temperature -1.0 is too small: at least 0"),
    (["--top-p", "0.9"], "--top-p and --top-k are for sampling: give a --temperature above 0"),
    (["--temperature", "1", "--top-p", "0"], "--top-p 0.0 is too small"),
    (["--temperature", "1", "--top-p", "nan"], "--top-p nan is no number"),
    (["--temperature", "1", "--top-k", "-1"], "--top-k -1 is too small"),
    (["--temperature", "1", "--probe-windows", "3"], "--probe-windows is for greedy decoding"),
    (["--device", "tpu9"], "device 'tpu9' is not supported: give cpu, cuda"),
    (["--dtype", "float8"], "invalid choice: 'float8'"),
    (["--metod", "pld"], "unrecognized arguments: --metod"),
]
OTHERS = [
    (["generate", "hi", "--method", "all"], "generate takes one method, not all of them; give one of dflash"),
    (["generate", "hi", "--method", "vanilla"], "vanilla always takes part in generate: name the method"),
    (["generate", "hi", "--method", "hf-generate"], "'hf-generate' is a peer.*give one of dflash"),
    (["generate", "hi", "--method", "kangaroo:weights=absent"], "absent is neither a folder"),
    (["generate", " "], "the prompt is empty"),
    (["generate", "hi", "--json", "--rejected"], "--rejected: --json has no text of drafts"),
    (["generate", "hi", "--max-new-tokens", "0"], "--max-new-tokens 0 is too small"),
    (["sweep"], "needs at least one --grid"),
    (["sweep", "--grid", "gama=2"], "no knob 'gama=2'"),
    (["sweep", "--grid", "gamma=2,two"], "gamma='two' is not of type int"),
    (["sweep", "--grid", "weights=absent,gone"], "absent is neither a folder"),
    (["sweep", "--grid", "train.exit_layr=1"], "did you mean 'exit_layer'"),
    (["sweep", "--grid", "train.epochs=0"], "too small: at least 1"),
    (["sweep", "--grid", "gamma=2", "--method", "all"], "sweep takes one method, not all of them"),
    (["sweep", "--grid", "tokens=2", "--method", "hf-prompt-lookup"], "is a peer"),
    (["sweep", "--grid", "gamma=2", "--train-tokens", "9"], "--train-tokens: nothing is trained without"),
    (["sweep", "--grid", "gamma=2", "--train-tokens", "-9"], "--train-tokens -9 is too small: at least 1"),
    (["sweep", "--grid", "gamma=2", "--model", NOBODY], NO_USER),
    (["sweep", "--grid", "gamma=2", "--out", "file/x"], "Not a directory"),
    (["sweep", "empty", "--limit", "2", "--train-epochs", "1"], "--limit.*is redrawn without further flags"),
    (["sweep", NOBODY], NO_USER),
    (["train", "kangaroo", "--epochs", "0"], "--epochs 0 is too small: at least 1"),
    (["train", "kangaroo", "--learning-rate", "nan"], "--learning-rate nan is no number"),
    (["train", "kangaroo", "--model", "absent"], "unknown model 'absent'"),
    (["train", "medusa", "--out", NOBODY], NO_USER),
    (["train", "medusa", "--heads", HUGE], "too large: at most 64"),
    (["train", "conversations", "--tokens", "-1"], "--tokens -1 is too small"),
    (["train", "collect", "--out", ""], "it is empty"),
    (["train", "vanilla"], "invalid choice: 'vanilla'"),
    (["bench-engine", "--context", "10"], "--context 10 is too small: at least 256"),
    (["bench-engine", "--repeats", HUGE], "too large: at most 10000"),
    (["bench-engine", "--shape", "vicuna-7"], r"unknown shape 'vicuna-7', did you mean 'vicuna-7b'\?"),
    (["bench-engine", "--shape", "vicuna-7b", "--model", "default"], "--model: --shape takes the place of a model"),
    (["bench-engine", "--method", "kangaro"], "unknown method 'kangaro'"),
    (["bench-engine", "--json", "empty"], "--json empty is a folder: give the path of a file"),
    (["project", "--shape", "vicuna-7"], "did you mean 'vicuna-7b'"),
    (["project", "--engine", "absent.json"], "cannot read absent.json: no such file"),
    (["project", "--engine", "file", "--shape", "vicuna-7b", "--threads", "2"], "--shape and --threads: file has its"),
    (["gate", "--alarm", "0.9"], "--alarm: only with --base REV"),
    (["gate", "--base", "HEAD", "--alarm", "0.9"], "--alarm 0.9 must lie between 0 and 0.5"),
    (["gate", "--base", "HEAD", "--budget-min", "-5"], "--budget-min -5.0 must be above 0 and at most 10080"),
    (["gate", "--base", "HEAD", "--budget-min", "nan"], "--budget-min nan must be"),
    (["gate", "--base", "HEAD", "--counters"], "--counters: only without --base"),
    (["gate", "--base", "HEAD", "--method", "kangaro"], "unknown method 'kangaro'"),
    (["gate", "--base", "HEAD", "--questions", "absent"], "questions .* cannot be read"),
    (["gate", "--base", "HEAD", "--slow-down", "x"], "'x' is not METHOD=SHARE"),
    (["gate", "--method", "kangaro"], "unknown method 'kangaro'"),
    (["gate", "--effect", "nan"], "--effect nan must lie between 0 and 1"),
    (["gate", "--baseline", NOBODY], NO_USER),
    (["report", "absent"], "absent is no run"),
    (["report", NOBODY], NO_USER),
    (["compare", "absent", "gone"], "absent is no run"),
    (["compare", "absent", "gone", "--json", "empty"], "--json empty is a folder"),
    (["compare", LONG, "gone"], "File name too long"),
    (["export", "absent"], "absent is no run"),
    (["export", BYTE], "it is not UTF-8 text"),
    (["history", "absent"], "absent is no run"),
    (["publish", "absent"], "absent has no run: give folders like results/runs/RUN_ID, or a folder above them"),
    (["publish", "empty", "--check"], "empty has no run"),
    (["publish"], "no runs are given, and none are in results/reference"),
    (["publish", "absent", "--check", "--index"], "--index: not allowed with argument --check"),
    (["publish", NOBODY], NO_USER),
    (
        ["publish", "absent", "--out", "file/x"],
        "cannot use the path 'file/x': Not a directory: give another path",
    ),
    (["replay", "absent"], "absent is no run"),
    (["replay", NOBODY], NO_USER),
    (["replay", "empty", "--method", "kangaroo:gama=4"], "no knob 'gama=4', did you mean 'gamma'"),
    (["replay", "empty", "--method", "vanilla"], "vanilla drafts nothing: name a method that drafts from text"),
    (["replay", "empty", "--method", "pld", "--json", "empty"], "--json empty is a folder"),
    (["cache", "list", "x"], "cache list takes no names, got 'x'"),
    (["cache", "clean", "x"], "nothing called 'x' is in the cache"),
]
CASES = [*RUN, *OTHERS]


def environment(folder: Path, **more: str) -> dict[str, str]:
    given = {"HOME": str(folder), "ROOBENCH_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT), **more}
    return {**os.environ, **given}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What each case of the table ended in, and the files that are there afterwards."""
    folder = tmp_path_factory.mktemp("work")
    for name in ("empty", "model"):
        (folder / name).mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "file").write_text("")
    before = sorted(folder.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], cwd=folder, env=environment(folder), input=json.dumps([c for c, _ in CASES]),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(folder.rglob("*")) == before
    return dict(zip((tuple(given) for given, _ in CASES), json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(
    ("given", "told"), CASES, ids=lambda part: " ".join(part)[:60] if isinstance(part, list) else ""
)
def test_mistake_ends_in_one_sentence_before_torch_is_imported(outcomes, given, told):
    status, out, err = outcomes[tuple(given)]
    assert status == 2, err
    assert out == ""
    (line,) = [line for line in err.splitlines() if "error: " in line]
    assert line == err.splitlines()[-1]
    assert re.search(told, line), line


def test_the_cases_are_all_different():
    assert len({tuple(given) for given, _ in CASES}) == len(CASES)


# --- processes -------------------------------------------------------------------------------------------------------


def started(folder: Path, *given: str, name: str = "run_bench.py", **options) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, with modules in `folder` before all others."""
    env = environment(folder, PYTHONPATH=os.pathsep.join([str(folder), str(ROOT)]))
    options = {"stdout": subprocess.PIPE, **options}
    return subprocess.run(
        [sys.executable, str(ROOT / name), *given], env=env, cwd=folder, stderr=subprocess.PIPE, text=True, check=False,
        **options,
    )  # fmt: skip


def test_wrong_knob_is_refused_without_torch_by_the_program_itself(tmp_path):
    for name in HEAVY:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')\n")
    done = started(tmp_path, "--method", "kangaroo:gama=4")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no knob 'gama=4'" in done.stderr
    done = started(tmp_path, "--method", "pld", "--model", "absent/model/there")
    assert "unknown model" in done.stderr


@pytest.mark.parametrize("module", ["argparse", "pydantic", "torch"])
def test_an_interrupt_while_modules_are_imported_is_no_traceback(tmp_path, module):
    (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt\n")
    (tmp_path / "q.jsonl").write_text('{"question_id": 1, "category": "qa", "turns": ["Why?"]}\n')
    done = started(tmp_path, "--method", "vanilla", "--peer", "none", "--questions", "q.jsonl")
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_an_interrupt_before_the_command_line_is_there_is_no_traceback(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n\nclass Interrupting:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'bench.cli':\n            raise KeyboardInterrupt\n\n"
        "sys.meta_path.insert(0, Interrupting())\n"
    )
    done = started(tmp_path, "list")
    assert (done.returncode, done.stderr) == (130, "")


def test_nobody_reads_the_output_is_a_quiet_end(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    done = started(tmp_path, "cache", "list", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
@pytest.mark.parametrize("given", [["cache", "list"], ["--version"], ["--help"]])
def test_a_full_disk_behind_the_output_is_told(tmp_path, given):
    with Path("/dev/full").open("w") as full:
        done = started(tmp_path, *given, stdout=full)
    assert done.returncode == 2
    assert done.stderr == "error: cannot write the output: No space left on device; free space, or write it elsewhere\n"


@pytest.mark.parametrize(
    ("closed", "given", "status", "told"),
    [
        ("<&-", "generate", 2, "error: the prompt is empty: give it as an argument or on standard input"),
        (">&-", "cache list", 0, ""),
        ("2>&-", "cache clean x", 2, ""),
        ("<&- >&- 2>&-", "cache list", 0, ""),
    ],
)
def test_closed_streams_are_read_and_written_as_empty_ones(tmp_path, closed, given, status, told):
    command = f"{sys.executable} {ROOT / 'run_bench.py'} {given} {closed}"
    env = environment(tmp_path)
    done = subprocess.run(["sh", "-c", command], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stdout == ""
    assert done.stderr.strip() == told


@pytest.mark.parametrize("cache", [NOBODY, f"{LONG}/x", "file/x"])
def test_a_cache_that_cannot_be_is_told(tmp_path, cache):
    (tmp_path / "file").write_text("")
    env = environment(tmp_path, ROOBENCH_CACHE=cache)
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_bench.py"), "cache", "list"], env=env, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert re.search("error: cannot use the path .*; set ROOBENCH_CACHE to a folder", done.stderr)
    assert "Traceback" not in done.stderr
