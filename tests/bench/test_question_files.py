"""Questions from elsewhere: SPEED-Bench's prepared files, and chat logs in OpenAI's and in ShareGPT's form."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from bench.errors import UserError
from bench.figures.records import prompt_digest
from bench.questions import Question, QuestionSet, load, parse
from tests.tiny import records, run_bench

SPEED_BENCH = [  # fields and types as on its dataset card
    {"question_id": name, "category": category, "sub_category": sub, "turns": turns, "source": "made/up",
     "src_id": "x_1", "difficulty": level, "multiturn": len(turns) > 1}
    for name, category, sub, turns, level in (
        ("6f1a", "writing", "poem", ["Rhyme on figs.", "Shorter."], None),
        ("07bc", "writing", "letter", ["Write to a beekeeper."], "easy"),
        ("99", "coding", None, ["Reverse a list."], "hard"),
        ("e3d0", "low_entropy", "sorting", ["Sort these: b, a."], None),
    )
]  # fmt: skip


def lines(*objects: object) -> bytes:
    return "\n".join(json.dumps(each, ensure_ascii=False) for each in objects).encode()


def read(*objects: object) -> QuestionSet:
    return parse("mine", lines(*objects), "mine.jsonl")


def openai(*messages: tuple[str, object], **fields: object) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in messages], **fields}


def sharegpt(*messages: tuple[str, object], **fields: object) -> dict[str, object]:
    return {"conversations": [{"from": who, "value": value} for who, value in messages], **fields}


# --- SPEED-Bench -----------------------------------------------------------------------------------------------------


def test_categories_and_tiers_of_speed_bench_are_tasks_and_places_stand_for_its_ids():
    found = read(*SPEED_BENCH)
    assert found.tasks == ["writing", "coding", "low_entropy"]  # two turns of writing are no MT-bench here
    assert [(q.question_id, q.task, q.turns) for q in found.questions] == [
        (1, "writing", ("Rhyme on figs.", "Shorter.")),
        (2, "writing", ("Write to a beekeeper.",)),
        (3, "coding", ("Reverse a list.",)),
        (4, "low_entropy", ("Sort these: b, a.",)),
    ]


def test_limit_draws_evenly_over_sub_categories():
    rows = [SPEED_BENCH[0] | {"sub_category": sub} for sub in ["poem"] * 9 + ["letter"] * 3]
    for seed in range(5):
        drawn = read(*rows).select(limit=4, seed=seed).questions
        assert sorted(q.sub_category for q in drawn) == ["letter"] * 2 + ["poem"] * 2


def test_published_file_without_prompts_is_refused_with_how_to_prepare_it():
    raw = SPEED_BENCH[0] | {"turns": ["FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"]}
    with pytest.raises(UserError, match=r"line 2: .*turns\[0\]: a placeholder: prepare the file .*prepare_data\.py"):
        read(SPEED_BENCH[1], raw)


def test_parquet_is_read_as_the_same_questions(monkeypatch):
    frame = pd.DataFrame([row | {"turns": np.array(row["turns"], dtype=object)} for row in SPEED_BENCH])
    asked = []
    monkeypatch.setattr(pd, "read_parquet", lambda file: asked.append(file.read()) or frame)
    found = parse("test.parquet", b"PAR1 and so on", "test.parquet")
    assert asked == [b"PAR1 and so on"]
    assert found.questions == read(*SPEED_BENCH).questions


@pytest.mark.parametrize(
    ("failure", "told"),
    [(ImportError("no engine"), "pip install pyarrow, or save it as JSON lines"), (OSError("bad"), r"Parquet .bad.")],
)
def test_parquet_that_cannot_be_read_is_refused_with_the_remedy(monkeypatch, failure, told):
    def fail(file):
        raise failure

    monkeypatch.setattr(pd, "read_parquet", fail)
    with pytest.raises(UserError, match=told):
        parse("test.parquet", b"PAR1", "test.parquet")


# --- chat logs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "log",
    [
        openai(("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello!"), ("user", "Bye.")),
        openai(("developer", "Be brief."), ("user", [{"type": "text", "text": "Hi"}, {"type": "text", "text": "."}]),
               ("assistant", None), ("user", "Bye."), ("assistant", "Bye!"), model="m", temperature=0.3),
        sharegpt(("system", "Be brief."), ("human", "Hi."), ("gpt", "Hello!"), ("human", "Bye."), id="QWJhYvA_0"),
        sharegpt(("system", "Be brief."), ("user", "Hi."), ("chatgpt", "Hello!"), ("human", "Bye."), ("bard", "Bye!")),
    ],
)  # fmt: skip
def test_what_the_user_says_in_a_log_is_asked_and_answers_are_left_out(log):
    assert read(log).questions == (Question(1, "", ("Hi.", "Bye."), system="Be brief.", task="uncategorized"),)


def test_category_of_a_log_is_its_task_and_its_number_its_id():
    found = read(
        openai(("user", "Hi."), ("assistant", "?"), ("user", "Bye."), category="writing", question_id=7),
        sharegpt(("human", "Hi."), category="support", question_id=3),
    )
    assert [(q.question_id, q.task) for q in found.questions] == [(7, "writing"), (3, "support")]


USER = {"role": "user", "content": "Hi."}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"messages": []}, "messages: no message of the user"),
        ({"messages": "Hi."}, "messages: must be a list of messages"),
        ({"messages": None}, "messages: must be a list of messages"),
        ({"messages": ["Hi."]}, r"messages\[0\]: a message needs role and content"),
        ({"messages": [{"content": "Hi."}]}, r"messages\[0\]: a message needs role and content"),
        ({"conversations": [USER]}, r"conversations\[0\]: a message needs from and value"),
        ({"messages": [{"role": ["user"], "content": "Hi."}]}, r"messages\[0\]\.role: .*only system, user"),
        (openai(("user", "Hi."), ("tool", "{}")), r"messages\[1\]\.role: 'tool': only .*, not tools"),
        (openai(("user", "Hi."), ("user", "Bye.")), r"messages\[1\]\.role: 'user' after 'user': .*take turns"),
        (openai(("assistant", "Hello!"), ("user", "Hi.")), r"messages\[0\]\.role: 'assistant' speaks first"),
        (openai(("system", "Be brief."), ("assistant", "Hello!")), r"\[1\]\.role: 'assistant' after 'system'"),
        (openai(("user", "Hi."), ("system", "Be brief.")), r"messages\[1\]\.role: 'system' after 'user'"),
        (openai(("system", "Be brief.")), "messages: no message of the user"),
        (openai(("user", " ")), r"messages\[0\]\.content: only text can be asked, and it must not be empty"),
        (openai(("user", None)), r"messages\[0\]\.content: only text"),
        (openai(("user", [{"type": "image_url", "image_url": {"url": "x"}}])), r"messages\[0\]\.content: only text"),
        (openai(("user", [{"type": "text", "text": 3}])), r"messages\[0\]\.content: only text"),
        (openai(("user", "Hi."), category=7), "category: Input should be a valid string, not 7"),
        (openai(("user", "Hi."), question_id=-1), "question_id: .*greater than or equal to 0"),
        (openai(("user", "Hi."), question_id=5), "question_id: some lines have numbers and others do not"),
        ({"prompt": "Hi."}, "turns: missing, and so are messages and conversations"),
    ],
)  # fmt: skip
def test_malformed_log_is_told_with_line_and_field(line, told):
    with pytest.raises(UserError, match=told) as caught:
        read(openai(("user", "Hi.")), line)
    assert str(caught.value).startswith("mine.jsonl, line 2: not a question (")


def test_a_json_array_is_refused_with_how_to_make_lines_of_it():
    with pytest.raises(UserError, match=r"one JSON array: write each of its objects on a line of its own \(jq"):
        parse("mine", json.dumps([openai(("user", "Hi."))], indent=1).encode(), "mine.json")


def test_a_run_asks_a_log_with_its_system_message_after_vanillas_own_answers(setting, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(lines(openai(("system", "Be brief."), ("user", "Hi."), ("assistant", "Oh!"), ("user", "Bye."))))
    assert load(str(path)).name == "log.jsonl"
    assert run_bench(setting.model, str(path), setting.out, "--method", "pld") == 0
    _, turns = records(setting.out)
    first, second = (turn for turn in turns if turn.method == "vanilla")
    prompts = [
        setting.chat.prompt([], "Hi.", "Be brief."),
        setting.chat.prompt([("Hi.", first.text)], "Bye.", "Be brief."),
    ]
    assert [first.prompt_digest, second.prompt_digest] == [prompt_digest(prompt) for prompt in prompts]
    assert {turn.audit.verdict for turn in turns if turn.audit} == {"identical"}
