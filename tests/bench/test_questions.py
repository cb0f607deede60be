"""Question files: what is promised of the mini set, what is refused, how they are drawn and ordered."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from io import BytesIO
from types import SimpleNamespace

import pytest

from bench import questions
from bench.errors import UserError
from bench.questions import MT_BENCH_CATEGORIES, TASKS, Question, QuestionSet, load, parse
from tests.tiny import ONE_TURN, TWO_TURNS, write_questions

# --- the mini set ----------------------------------------------------------------------------------------------------


def test_mini_set_has_eight_questions_of_each_task_and_unique_ids():
    mini = load("mini")
    assert mini.name == "mini"
    assert mini.tasks == list(TASKS)
    assert Counter(q.task for q in mini.questions) == dict.fromkeys(TASKS, 8)
    assert len({q.question_id for q in mini.questions}) == 48


def test_mini_set_asks_two_turns_of_each_mt_bench_category_and_one_elsewhere():
    asked = [(q.category, len(q.turns)) for q in load("mini").questions]
    assert sorted(asked[:8]) == sorted((category, 2) for category in MT_BENCH_CATEGORIES)
    assert {turns for _, turns in asked[8:]} == {1}


def test_mini_set_gives_passages_to_summarise_and_to_answer_from():
    lengths = [len(q.turns[0].split()) for q in load("mini").questions if q.task in ("summarization", "rag")]
    assert min(lengths) >= 400
    assert max(lengths) <= 900


def test_mini_set_repeats_no_question():
    turns = [turn for q in load("mini").questions for turn in q.turns]
    assert len(set(turns)) == len(turns)


# --- files -----------------------------------------------------------------------------------------------------------


def test_file_is_read_with_its_name_and_the_hash_of_all_of_it(tmp_path):
    path = write_questions(tmp_path / "mine.jsonl", TWO_TURNS, (5, "haiku", ["Frogs?"]), ONE_TURN)
    found = load(path)
    assert found.name == "mine.jsonl"
    assert found.sha256 == hashlib.sha256((tmp_path / "mine.jsonl").read_bytes()).hexdigest()
    assert found.questions[0] == Question(11, "writing", TWO_TURNS[2])
    assert [q.task for q in found.questions] == ["mt_bench", "haiku", "qa"]
    assert found.tasks == ["mt_bench", "qa", "haiku"]
    assert found.select("haiku").sha256 == found.sha256


def test_official_file_is_recognised_under_any_path(tmp_path, monkeypatch):
    path = write_questions(tmp_path / "question.jsonl", ONE_TURN)
    monkeypatch.setattr(
        questions, "OFFICIAL_SHA256", hashlib.sha256((tmp_path / "question.jsonl").read_bytes()).hexdigest()
    )
    assert load(path).name == "official"


GOOD = json.dumps({"question_id": 1, "category": "qa", "turns": ["Why?"]})


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "EOF while parsing"),
        ("[1, 2]", "the text: Input should be an object"),
        ("[" * 100_000, "recursion limit"),
        ('{"category": "qa", "turns": ["x"]}', "question_id: missing"),
        ('{"question_id": 2, "turns": ["x"]}', "category: missing"),
        ('{"question_id": 2, "category": "qa"}', "turns: missing"),
        (
            '{"question_id": "2", "category": "qa", "turns": ["x"]}',
            "question_id: some lines have numbers and others do not",
        ),
        ('{"question_id": null, "category": "qa", "turns": ["x"]}', "question_id: .* valid integer, not None"),
        ('{"question_id": true, "category": "qa", "turns": ["x"]}', "question_id: .* valid integer, not True"),
        ('{"question_id": -2, "category": "qa", "turns": ["x"]}', "question_id: .* greater than or equal to 0, not -2"),
        (f'{{"question_id": {"9" * 5000}, "category": "qa", "turns": ["x"]}}', "number out of range"),
        (f'{{"question_id": {"9" * 400}, "category": "qa", "turns": ["x"]}}', "question_id: .* of 400 digits"),
        ('{"question_id": 2, "category": "overall", "turns": ["x"]}', "the mean of all tasks"),
        ('{"question_id": 2, "category": "Overall", "turns": ["x"]}', "'Overall' is what .* the mean of all tasks"),
        ('{"question_id": 2, "category": 7, "turns": ["x"]}', "category: Input should be a valid string, not 7"),
        ('{"question_id": 2, "category": "qa", "turns": []}', "turns: Tuple should have at least 1 item"),
        ('{"question_id": 2, "category": "qa", "turns": "x"}', "turns: Input should be a valid"),
        ('{"question_id": 2, "category": "qa", "turns": ["x", " "]}', r"turns\[1\]: String should match .*, not ' '"),
        ('{"question_id": 2, "category": "qa", "turns": [3]}', r"turns\[0\]: Input should be a valid string, not 3"),
        ('{"question_id": 2, "category": "qa", "turns": ["cut \\ud83d"]}', "half a character .a lone surrogate"),
        ('{"question_id": 1, "category": "qa", "turns": ["x"]}', "question_id: 1 was used before"),
    ],
)
def test_malformed_line_is_told_with_its_number(tmp_path, line, told):
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{GOOD}\n{line}\n{GOOD.replace('1', '3')}\n")
    with pytest.raises(UserError, match=told) as caught:
        load(str(path))
    assert "bad.jsonl, line 2" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_empty_file_is_refused(tmp_path, content):
    (tmp_path / "empty.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"empty\.jsonl holds no questions"):
        load(str(tmp_path / "empty.jsonl"))


def test_file_that_is_not_utf8_is_refused_by_name(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(GOOD.replace("Why", "Wie schön").encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.jsonl.*(UTF-8|utf-8)"):
        load(str(tmp_path / "latin.jsonl"))


def test_windows_line_ends_and_blank_lines_are_no_mistakes():
    content = f"\n{GOOD}\r\n\r\n  \n{GOOD.replace('1', '2')}\r\n\r\n".encode()
    assert [q.question_id for q in parse("x", content, "x").questions] == [1, 2]


def test_file_with_a_byte_order_mark_is_refused():
    with pytest.raises(UserError, match=r"x, line 1: .*byte order mark: save it as UTF-8 without one"):
        parse("x", b"\xef\xbb\xbf" + GOOD.encode(), "x")


def of_categories(*categories: str) -> QuestionSet:
    lines = [json.dumps({"question_id": i, "category": c, "turns": ["?"]}) for i, c in enumerate(categories)]
    return parse("mine", "\n".join(lines).encode(), "mine")


@pytest.mark.parametrize(
    ("asked", "ids"),
    [
        ("all", [0, 1, 2, 3, 4, 5]),
        ('"all"', [0]),
        ('"code, hard"', [1]),
        ('"code, hard", "all",qa', [0, 1, 4]),
        ('""', [2]),
        ("uncategorized", [2]),
        ('"say ""x"""', [3]),
        ("math", [5]),
    ],
)
def test_any_category_can_be_chosen_by_its_name_in_double_quotes(asked, ids):
    found = of_categories("all", "code, hard", "", 'say "x"', "qa", "math")
    assert [q.question_id for q in found.select(asked).questions] == ids


def test_tasks_that_need_quotes_are_listed_with_them():
    found = of_categories("all", "code, hard", "qa")
    for asked in ("code", "qa,"):
        with pytest.raises(UserError, match=r'mine has: all, qa, "all", "code, hard"'):
            found.select(asked)
    with pytest.raises(UserError, match=r"--tasks '\"code' cannot be read .*double quotes"):
        found.select('"code')


def test_one_turn_of_an_mt_bench_category_is_a_task_of_its_own():
    assert Question(1, "math", ("1 + 1?",)).task == "math"
    assert Question(1, "math", ("1 + 1?", "And 2?")).task == "mt_bench"


@pytest.mark.parametrize("name", ["absent.jsonl", "."])
def test_missing_file_is_refused_with_what_can_be_given(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"cannot be read.*give mini, official or a file"):
        load(name)


# --- which are asked -------------------------------------------------------------------------------------------------


def test_tasks_are_chosen_by_name_and_keep_the_order_of_the_file():
    chosen = load("mini").select("rag, mt_bench")
    assert chosen.tasks == ["mt_bench", "rag"]
    assert len(chosen.questions) == 16
    ids = [q.question_id for q in load("mini").questions]
    assert [q.question_id for q in chosen.questions] == [
        i for i in ids if i in {q.question_id for q in chosen.questions}
    ]


@pytest.mark.parametrize(("asked", "told"), [("mt-bench", "did you mean 'mt_bench'"), ("qa,", "unknown task ''")])
def test_unknown_task_is_refused_with_those_there_are(asked, told):
    with pytest.raises(UserError, match=told) as caught:
        load("mini").select(asked)
    assert "all, mt_bench, translation, summarization, qa, math_reasoning, rag" in str(caught.value)


def many() -> QuestionSet:
    """Ten questions each of eight categories, in blocks, as Spec-Bench has them; and fifty of another task."""
    numbered = [(c, i) for c in MT_BENCH_CATEGORIES for i in range(10)] + [("qa", i) for i in range(50)]
    return QuestionSet("many", "", tuple(Question(n, c, (f"{c} {i}", "?")) for n, (c, i) in enumerate(numbered)))


@pytest.mark.parametrize(("limit", "each"), [(8, {1}), (16, {2}), (12, {1, 2})])
def test_limit_draws_evenly_over_categories(limit, each):
    drawn = many().select(limit=limit).questions
    by_category = Counter(q.category for q in drawn if q.task == "mt_bench")
    assert sum(by_category.values()) == limit
    assert set(by_category) == set(MT_BENCH_CATEGORIES)
    assert set(by_category.values()) == each
    assert sum(q.task == "qa" for q in drawn) == limit
    assert list(drawn) == sorted(drawn, key=lambda q: q.question_id)


def test_limit_draws_the_same_by_seed_and_others_by_another():
    assert many().select(limit=8, seed=3) == many().select(limit=8, seed=3)
    assert len({many().select(limit=8, seed=seed).questions for seed in range(4)}) == 4


def test_limit_above_what_is_there_asks_everything():
    assert many().select(limit=1000) == many().select() == many()


# --- the official set ------------------------------------------------------------------------------------------------


@pytest.fixture
def served(cache, monkeypatch):
    """Answers downloads with `content`, or raises it; lists the addresses asked for."""
    net = SimpleNamespace(content=(GOOD + "\n").encode(), asked=[])

    def urlopen(url, timeout):
        net.asked.append(url)
        if isinstance(net.content, Exception):
            raise net.content
        return BytesIO(net.content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(questions, "OFFICIAL_SHA256", hashlib.sha256(net.content).hexdigest())
    return net


def test_official_set_is_downloaded_once_at_a_pinned_commit_and_then_used_offline(served, cache):
    first = load("official")
    assert first.name == "official"
    assert [q.question_id for q in first.questions] == [1]
    assert served.asked == [questions.OFFICIAL_URL]
    assert questions.OFFICIAL_COMMIT in questions.OFFICIAL_URL
    served.content = urllib.error.URLError("no network")
    assert load("official") == first
    assert len(served.asked) == 1


def test_official_set_of_another_content_is_refused_and_not_kept(served, cache):
    served.content += b"\n"
    with pytest.raises(UserError, match="sha256 differs"):
        load("official")
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_damaged_copy_of_the_official_set_is_fetched_again(served, cache):
    load("official")
    (kept,) = [path for path in cache.rglob("*") if path.is_file()]
    kept.write_bytes(b"half of")
    assert [q.question_id for q in load("official").questions] == [1]
    assert len(served.asked) == 2


@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError(OSError("Name or service not known")),
        urllib.error.HTTPError("u", 404, "Not Found", None, None),
        http.client.IncompleteRead(b"half", 100),
        TimeoutError("timed out"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_official_set_without_a_network_names_the_remedy(served, failure):
    served.content = failure
    with pytest.raises(UserError, match=r"fetch https://.*question\.jsonl elsewhere.*--questions FILE"):
        load("official")


def test_cache_that_cannot_hold_the_official_set_is_a_user_error(served, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROOBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set ROOBENCH_CACHE"):
        load("official")


# --- in which order they are asked ----------------------------------------------------------------------------------


def test_tasks_take_turns_and_those_of_other_sizes_are_spread_evenly():
    sizes = {"qa": 4, "rag": 2, "support": 1}
    places = [(column, task, i) for column, (task, n) in enumerate(sizes.items()) for i in range(n)]
    asked = [Question(10 * column + i, task, ("?",)) for column, task, i in places]
    order = QuestionSet("some", "0" * 64, tuple(asked)).in_turns()
    assert [question.task for _, question in order] == ["qa", "rag", "qa", "support", "qa", "rag", "qa"]
    assert {question.question_id for _, question in order} == {question.question_id for question in asked}
    for task, count in sizes.items():
        assert [number % 2 for number, question in order if question.task == task] == [
            (column + i) % 2 for column in (list(sizes).index(task),) for i in range(count)
        ]


def test_of_equal_tasks_the_order_changes_within_each_and_from_question_to_question():
    asked = [Question(10 * column + i, task, ("?",)) for column, task in enumerate("abcdef") for i in range(4)]
    order = QuestionSet("some", "0" * 64, tuple(asked)).in_turns()
    for task in "abcdef":
        assert sum(number % 2 for number, question in order if question.task == task) == 2
    assert [question.task for _, question in order] == list("abcdef" * 4)


@pytest.mark.parametrize("source", ["/dev/zero", "pipe"])
def test_a_file_without_an_end_is_refused(source, monkeypatch, tmp_path):
    monkeypatch.setattr("bench.files.MOST_BYTES", 10_000)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = ["sh", "-c", 'exec cat /dev/zero > "$0"', str(pipe)] if source == "pipe" else ["true"]
    with subprocess.Popen(writer), pytest.raises(UserError, match=r"cannot be read \(it has more than 0\.01 MB\)"):
        load(str(pipe) if source == "pipe" else source)
