"""Whole runs beside other engines, through the command line: baselines of their own, names in reports, no keys."""

from __future__ import annotations

import dataclasses
import json

import pytest

from bench.cli import main
from bench.config import RunConfig
from bench.drafting.method import Answer
from bench.figures.records import read_run, write_json
from bench.figures.summary import read_summary
from bench.run import environment
from bench.run.examiner import is_counted_right
from bench.run.plan import variants
from tests.servers import Scripted
from tests.tiny import files_of, records, run_bench

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def serve(setting, hf_greedy):
    """(api, options) -> a server of the run's model; its last `off` tokens are others than transformers'."""
    running: list[Scripted] = []

    def start(api: str, off: int = 0, **options) -> Scripted:
        def answer(prompt, limit):
            ids = hf_greedy(setting.hf, prompt, limit, frozenset({258}))
            return [*ids[: len(ids) - off], *((token + 1) % 256 for token in ids[len(ids) - off :])]

        running.append(Scripted(api, answer, **options))
        return running[-1]

    yield start
    for server in running:
        server.close()


def run(setting, *peers: str) -> int:
    flags = [word for peer in peers for word in ("--peer", peer)]
    return run_bench(setting.model, setting.questions, setting.out, "--method", "pld", "--peer-limit", "0", *flags)


def test_a_server_is_compared_with_the_one_that_it_names(setting, serve, capsys):
    plain, drafting = serve("vllm"), serve("vllm", groups=(3, 2))
    label = f"openai:url={drafting.url},name=eagle,baseline=plain"
    assert run(setting, f"openai:url={plain.url},name=plain", label) == 0
    record, turns = records(setting.out)
    assert record.methods[label].notes["baseline"] == f"openai:url={plain.url},name=plain"
    assert record.methods[label].notes["engine"] == {"name": "vLLM", "version": "0.11.0", "flags": ""}
    of_drafting = [turn for turn in turns if turn.method == label]
    assert {turn.audit.verdict for turn in of_drafting} == {"identical"}
    assert all(turn.audit is None for turn in turns if turn.method.endswith("name=plain"))
    found = read_summary(setting.out).beside[label]
    overall = found.tasks["overall"]
    assert overall.turns == len(of_drafting) == 4
    assert overall.lossless == {"identical": 4, "numerical": 0, "different": 0}
    drafted, accepted = sum(turn.drafted for turn in of_drafting), sum(turn.accepted for turn in of_drafting)
    assert overall.drafts.accepted == accepted / drafted
    printed = " ".join(capsys.readouterr().out.split())
    assert "eagle decodes" in printed
    assert "as fast as plain (end-to-end" in printed
    report = (setting.out / "report.md").read_text()
    assert "## Peers against their own baseline" in report
    assert "### eagle (another engine: vLLM 0.11.0, not lossless) against plain (another engine: vLLM 0.11.0" in report
    assert f"| eagle | vLLM | 0.11.0 | - | `{drafting.url}` | own arithmetic" in report
    html = (setting.out / "report.html").read_text()
    assert "Peers against their own baseline" in html


def test_counts_of_another_client_are_left_out_and_the_run_can_be_read(setting, serve):
    server = serve("vllm", groups=(3, 2))
    answer = server.answer

    def answers_others_meanwhile(prompt, limit):
        server.counters["drafts"] += 1000
        return answer(prompt, limit)

    server.answer = answers_others_meanwhile
    label = f"openai:url={server.url},name=eagle"
    assert run(setting, label) == 0
    record, turns = records(setting.out)
    assert {(t.decode_passes, t.drafted, t.accepted) for t in turns if t.method == label} == {(None, None, None)}
    assert (
        f"{label} counts passes that some answers cannot have: those counts are left out"
        in (record.provenance["warnings"])
    )


@pytest.mark.parametrize(
    ("tokens", "first", "passes", "drafted", "accepted", "right"),
    [
        (9, 1, None, None, None, True),
        (9, 1, 1, 8, 7, True),
        (9, 1, 8, None, None, True),
        (1, 1, 0, 0, 0, True),
        (9, 1, 9, None, None, False),
        (9, 1, 0, None, None, False),
        (1, 1, 1, None, None, False),
        (9, 0, -1, None, None, False),
        (9, 1, 2.5, None, None, False),
        (9, 1, 4, -3, None, False),  # of a server that was restarted
        (9, 1, 4, 3, 4, False),
        (9, 1, 4, None, 4, True),
    ],
)
def test_counts_that_an_answer_cannot_have_are_seen(tokens, first, passes, drafted, accepted, right):
    answer = Answer([7] * tokens, 1.0, 1.0, [], first, passes, drafted, accepted)
    assert is_counted_right(answer) == right


def test_answers_that_come_all_at_once_have_no_decode_speed(setting, serve):
    label = f"openai:url={serve('sglang', first=999).url},name=slow"
    assert run(setting, label) == 0
    overall = read_summary(setting.out).methods[label].tasks["overall"]
    assert (overall.tok_per_s, overall.speedup_decode.value) == (None, None)
    assert overall.speedup_total.value > 0
    assert "some answers came in one event" in (setting.out / "report.md").read_text()


def test_what_a_server_takes_of_the_processors_is_not_laid_on_other_programs(setting, serve, monkeypatch):
    monkeypatch.setattr(environment, "_TICKS_S", 0)
    label = f"openai:url={serve('vllm').url}"
    assert run(setting, label) == 0
    by_method = {(turn.method, turn.others_share is None) for turn in records(setting.out)[1]}
    assert by_method == {("vanilla", False), ("pld", False), (label, True)}


def test_text_that_speculation_changes_is_no_failure_of_vanilla_or_of_the_run(setting, serve):
    plain, wrong = serve("sglang"), serve("sglang", off=2, groups=(2,))
    assert run(setting, f"openai:url={plain.url}", f"openai:url={wrong.url},baseline={plain.url}/") == 0
    summary = read_summary(setting.out)
    (found,) = summary.beside.values()
    assert found.tasks["overall"].lossless["different"] == 4
    assert found.gap > 0
    assert summary.divergences == []
    assert "differ from vanilla" not in (setting.out / "report.md").read_text()


def test_a_server_with_the_same_weights_may_be_held_against_vanilla(setting, serve):
    same, wrong = serve("llama-server"), serve("llama-server", off=1)
    peers = [f"openai:url={server.url},name={name},audit=true" for server, name in ((same, "same"), (wrong, "wrong"))]
    assert run(setting, *peers) == 0
    verdicts = {(turn.method, turn.audit.verdict) for turn in records(setting.out)[1] if "openai" in turn.method}
    assert verdicts == {(peers[0], "identical"), (peers[1], "different")}
    assert "**Not lossless**: 4 answers of wrong differ from vanilla's" in (setting.out / "report.md").read_text()


def test_a_question_that_a_server_fails_at_is_recorded_with_its_words(setting, serve, capsys):
    server = serve("vllm")
    answer, prompts = server.answer, set()

    def fails(prompt, limit):
        prompts.add(tuple(prompt))
        if len(prompts) == 3:  # the warm-up's, and that of a question which it answers
            server.fault = "inside"
        return answer(prompt, limit)

    server.answer = fails
    assert run(setting, f"openai:url={server.url},name=vllm") == 0
    errors = {turn.error for turn in records(setting.out)[1] if turn.error}
    assert errors
    assert all("ended its answer with an error: " in error and "engine died" in error for error in errors)


def test_neither_key_nor_header_is_in_any_record_report_or_message(setting, serve, monkeypatch, capfd, cache):
    servers = [serve(api, key=KEY, groups=(2,)) for api in ("vllm", "sglang", "llama-server")]
    monkeypatch.setenv("ENGINE_KEY", KEY)
    assert run(setting, *(f"openai:url={server.url},key_env=ENGINE_KEY" for server in servers)) == 0
    for server in servers:
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    monkeypatch.setenv("ENGINE_KEY", KEY[::-1])  # which the server repeats in its refusal
    assert run(setting, f"openai:url={servers[0].url},key_env=ENGINE_KEY") == 2
    printed = capfd.readouterr()
    written = b"".join(path.read_bytes() for path in setting.out.parent.rglob("*") if path.is_file())
    assert b"ENGINE_KEY" in written  # the name is no secret
    for secret in (KEY, KEY[::-1]):
        assert secret not in printed.out + printed.err
        assert secret.encode() not in written
    assert b"Bearer" not in written
    assert b"uthorization" not in written


def test_a_run_goes_on_with_the_engine_that_it_began_with(setting, serve, capsys):
    server = serve("vllm")
    assert run(setting, f"openai:url={server.url}") == 0
    begun = read_run(setting.out)
    write_json(setting.out / "run.json", dataclasses.replace(begun, complete=False))
    assert main(["--resume", str(setting.out)]) == 0
    write_json(setting.out / "run.json", dataclasses.replace(begun, complete=False))
    monkeypatched = server.page
    server.page = lambda path: {"version": "0.12.0"} if path == "/version" else monkeypatched(path)
    before = files_of(setting.out)["turns.jsonl"]
    assert main(["--resume", str(setting.out)]) == 2
    assert "cannot resume" in (told := capsys.readouterr().err)
    assert "0.11.0" in told
    assert "0.12.0" in told
    assert files_of(setting.out)["turns.jsonl"] == before


def test_a_server_that_is_called_like_another_peer_is_not_its_baseline(tmp_path):
    (tmp_path / "draft.gguf").write_bytes(b"")
    server, drafting = "openai:url=http://a/v1,name=llama-cpp", f"llama-cpp:draft={tmp_path}/draft.gguf"
    for peers, baseline in (((server, drafting), ""), ((drafting, "llama-cpp"), "llama-cpp")):
        found, _ = variants(RunConfig(method=("pld",), peer=peers), "tiny")
        assert {variant.label: variant.baseline for variant in found}[drafting] == baseline


@pytest.mark.parametrize(
    ("peers", "told"),
    [
        (
            ["openai:url=http://a/v1,name=hf-generate", "hf-generate"],
            "name=hf-generate is what another peer of this run is asked for by: give it a name of its own",
        ),
        (
            ["openai:url=http://a/v1,baseline=none"],
            "baseline=none is no other peer of this run: name one that takes part",
        ),
        (["openai:url=http://a/v1,name=a,baseline=a"], "baseline=a is no other peer of this run"),
        (["openai:url=http://a/v1,name=a", "openai:url=http://b/v1,name=a"], "two peers are called 'a'"),
        (
            ["openai:url=http://a/v1,baseline=b", "openai:url=http://b/v1,name=c"],
            "(openai:url=http://b/v1,name=c, c, http://b/v1)",
        ),
    ],
)
def test_a_baseline_that_does_not_take_part_is_told(peers, told, setting, capsys):
    assert run(setting, *peers) == 2
    assert told in capsys.readouterr().err
    assert not setting.out.exists()


def test_the_engines_own_libraries_are_named(setting):
    assert run(setting, "hf-generate", "hf-prompt-lookup") == 0
    import transformers

    notes = json.loads((setting.out / "run.json").read_text())["methods"]["hf-prompt-lookup"]["notes"]
    flags = "prompt_lookup_num_tokens 10, max_matching_ngram_size 2"
    assert notes["engine"] == {"name": "transformers", "version": transformers.__version__, "flags": flags}
    assert f"another engine: transformers {transformers.__version__}" in (setting.out / "report.md").read_text()
