"""REST drafts the most frequent continuations of the longest match in a corpus, which has no test questions in it."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest

import methods
from bench.drafting import corpora
from bench.drafting.indexes.suffix_array import SuffixArray
from bench.errors import UserError
from bench.models import conversation_files, loading
from methods.rest import REST
from methods.sam import SAM
from tests.own_answers import write_conversations
from tests.tiny import write_questions

SECRET = "Who invented marzipan"  # a test question
TEXTS = ("the cat sat on the mat", "the cat sat on the sofa", "a dog sat on the mat", f"{SECRET}? Nobody knows.")


@pytest.fixture
def scene(tiny_model, tiny_decoder, tiny_checkpoint, monkeypatch, tmp_path):
    """(decoder, checkpoint) whose files and cache are a test's own."""
    decoder, checkpoint = tiny_decoder(*tiny_model("tied")), tiny_checkpoint("tied")
    monkeypatch.setitem(loading._loaded_from, decoder, checkpoint)
    monkeypatch.setattr(conversation_files, "FOLDER", tmp_path / "data")
    monkeypatch.setenv("ROOBENCH_CACHE", str(tmp_path / "cache"))
    return decoder, checkpoint


@pytest.fixture
def questions(tmp_path):
    return write_questions(tmp_path / "q.jsonl", (1, "qa", [SECRET]))


@pytest.fixture
def folder(tmp_path):
    """Text files, and what is not looked at."""
    root = tmp_path / "texts"
    (root / "more").mkdir(parents=True)
    for number, text in enumerate(TEXTS):
        (root / ("more" if number % 2 else ".") / f"{number}.txt").write_text(text, encoding="utf-8")
    (root / ".hidden").write_bytes(b"\xff\xfe")
    return root


def rest(scene, label: str):
    return REST(scene[0], methods.parse(f"rest:{label}").config)


def drafts(method, text: list[int]) -> set[tuple[int, ...]]:
    """The paths of a draft's tree."""
    draft = method.propose_text(text, 99)
    paths = {-1: ()}
    for number, (token, parent) in enumerate(zip(draft.tokens, draft.tree.parents, strict=True)):
        paths[number] = (*paths[parent], token)
    return set(paths.values()) - {()}


def retrieved(rows: list[list[int]], text: list[int], longest: int, depth: int, most: int) -> tuple[set, set]:
    """The paths that must and those that may be drafted, as REST says: counted prefixes of what followed."""
    for length in range(longest, 1, -1):
        if length > len(text):
            continue
        after = [
            row[end : end + depth]
            for row in rows
            for end in range(length, len(row) + 1)
            if row[end - length : end] == text[-length:]
        ]
        if after:
            counts = Counter(tuple(tokens[:n]) for tokens in after for n in range(1, len(tokens) + 1))
            least = sorted(counts.values(), reverse=True)[:most][-1] if counts else 0
            return {p for p, c in counts.items() if c > least}, {p for p, c in counts.items() if c >= least}
    return set(), set()


@pytest.mark.parametrize("most", [64, 5])
def test_drafts_are_the_most_frequent_continuations_of_the_longest_match(scene, questions, most):
    rng, some = random.Random(0), 0
    rows = [[rng.randrange(3) + 65 for _ in range(rng.randint(3, 30))] for _ in range(12)]
    write_conversations(conversation_files.FOLDER, scene[1], rows, [0] * len(rows))
    method = rest(scene, f"paper,tokens={most},longest=4,depth=5,decontaminate={questions}")
    for _ in range(300):
        text = [rng.randrange(4) + 65 for _ in range(rng.randint(1, 8))]
        must, may = retrieved(rows, text, 4, 5, most)
        found = drafts(method, text)
        assert must <= found <= may
        assert len(found) == min(most, len(may))
        some += bool(found)
    assert some > 100


def test_a_growing_text_is_found_as_a_whole_one(scene, questions):
    rng = random.Random(2)
    rows = [[rng.randrange(3) for _ in range(rng.randint(3, 40))] for _ in range(9)]
    write_conversations(conversation_files.FOLDER, scene[1], rows, [0] * len(rows))
    method = rest(scene, f"decontaminate={questions},longest=9,stop=never")
    for _ in range(20):
        text = [rng.randrange(3) for _ in range(3)]
        index = method.index(text)
        for _ in range(30):
            assert method.find(index, 9, 9) == method.find(method.index(text), 9, 9)
            more = [rng.randrange(4) for _ in range(rng.randint(1, 3))]
            index.extend(more)
            text += more


def test_only_the_models_own_answers_are_looked_in_and_no_test_question(scene, questions):
    decoder, checkpoint = scene
    chat = loading.ChatFormat(corpora.checkpoints.load_tokenizer(checkpoint))
    rows = [chat.encode(f"prompt {text}") for text in TEXTS]
    write_conversations(conversation_files.FOLDER, checkpoint, rows, [7] * len(rows))
    method = rest(scene, f"decontaminate={questions}")
    facts = method.notes["corpus"]
    assert (facts["source"], facts["texts"], facts["left_out"]) == ("own", 3, 1)
    assert (facts["decontaminated"], facts["missing"]) == (["mini", "q.jsonl"], [])
    stored = chat.answer_text([token for token in method.corpus.array.tokens.tolist() if token >= 0])
    assert stored == "".join(TEXTS[:3])
    assert method.memory == f"corpus:{method.corpus.array.digest}"
    with_own = SAM(decoder, methods.parse(f"sam:corpus=own,decontaminate={questions}").config)
    assert with_own.memory == method.memory


def test_a_folder_of_text_is_a_corpus(scene, questions, folder):
    decoder, checkpoint = scene
    chat = loading.ChatFormat(corpora.checkpoints.load_tokenizer(checkpoint))
    method = rest(scene, f"corpus={folder},decontaminate={questions},stop=never,tokens=6,depth=6")
    assert (method.notes["corpus"]["texts"], method.notes["corpus"]["left_out"]) == (3, 1)
    draft = method.propose_text(chat.encode("my cat sat on t"), 99)
    assert chat.answer_text(draft.tokens[:3]) == "he"
    static = SAM(decoder, methods.parse(f"sam:paper,corpus={folder},decontaminate={questions}").config)
    draft = static.propose_text(chat.encode("my cat sat on t"), 99)
    assert chat.answer_text(draft.tokens[:3]) == "he"


def test_a_corpus_is_built_once_for_the_same_files_and_questions(scene, questions, folder, monkeypatch, tmp_path):
    builds, build = [], SuffixArray.build
    monkeypatch.setattr(SuffixArray, "build", lambda documents: builds.append(1) or build(documents))
    label = f"corpus={folder},decontaminate={questions}"
    first = rest(scene, label)
    again = rest(scene, label)
    assert (len(builds), again.memory, again.notes) == (1, first.memory, first.notes)
    other = write_questions(tmp_path / "other.jsonl", (1, "qa", ["a dog sat"]))
    assert rest(scene, f"corpus={folder},decontaminate={other}").memory != first.memory
    (folder / "0.txt").write_text("another text", encoding="utf-8")
    assert rest(scene, label).memory != first.memory
    assert len(builds) == 3


@pytest.mark.parametrize("damage", ["facts", "array"])
def test_a_damaged_cache_is_rebuilt(scene, questions, folder, damage, tmp_path):
    label = f"corpus={folder},decontaminate={questions}"
    first = rest(scene, label)
    (entry,) = (tmp_path / "cache" / "corpora").iterdir()
    if damage == "facts":
        (entry / "facts.json").write_text("{")
    else:
        (path,) = entry.glob("*.int32")
        path.write_bytes(path.read_bytes()[:-4] + b"\x01\x02\x03\x04")
    again = rest(scene, label)
    assert (again.memory, again.notes) == (first.memory, first.notes)
    assert json.loads((entry / "facts.json").read_text()) == first.notes["corpus"]


def test_what_was_right_decides_how_much_is_drafted(scene, questions):
    """Of two texts that follow as often, neither is likely; of one that always follows, much is drafted."""
    rows = [[1, 2, 3, 4, 5, 6, 7, 8]] * 4 + [[1, 2, 3, 9, 9, 9]] * 4
    write_conversations(conversation_files.FOLDER, scene[1], rows, [0] * len(rows))
    method = rest(scene, f"decontaminate={questions},costs=0/0/1:1/2:1.3/9:3.4")
    (split,) = method.find(method.index([1, 2, 3]), 9, 9)
    assert [share for parent, share in zip(split.parents, split.shares, strict=True) if parent == -1] == [0.5, 0.5]
    (sure,) = method.find(method.index([3, 4, 5]), 9, 9)
    assert (sure.length, set(sure.shares), list(sure.tokens)) == (3, {1.0}, [6, 7, 8])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("absent", "is not a folder: name a folder of text files, or own"),
        ("empty", "has no files"),
        ("binary", r"bad\.bin cannot be read as text \(it is not UTF-8\): remove it"),
        ("all left out", "nothing is left to look in"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_a_user_error(scene, questions, tmp_path, spoil, said):
    root = tmp_path / "spoilt"
    if spoil != "absent":
        root.mkdir()
    if spoil == "binary":
        (root / "bad.bin").write_bytes(b"\xff\xff")
    if spoil == "all left out":
        (root / "a.txt").write_text(TEXTS[-1])
    with pytest.raises(UserError, match=said):
        rest(scene, f"corpus={root},decontaminate={questions}")


def test_a_model_without_conversations_is_told_before_it_is_loaded(scene):
    with pytest.raises(UserError, match=r"no conversations come with the project for model 'org/other'.*train collect"):
        methods.parse("rest").check_files("org/other")
    with pytest.raises(UserError, match=r"rest:corpus=nowhere: .* is not a folder"):
        methods.parse("rest:corpus=nowhere").check_files("org/other")
    write_conversations(conversation_files.FOLDER, scene[1], [[1, 2, 3]], [1])
    methods.parse("rest").check_files(scene[1].name)
    methods.parse("sam").check_files("org/other")


def test_answers_of_other_weights_are_not_looked_in(scene, questions):
    path = write_conversations(conversation_files.FOLDER, scene[1], [[1, 2, 3, 4]], [1])
    with np.load(path) as stored:
        columns = dict(stored)
    np.savez(path, **columns | {"weights": np.array("f" * 64)})
    with pytest.raises(UserError, match="written by other weights"):
        rest(scene, f"decontaminate={questions}")


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ("longest=0", "longest=0 must be in 1..32"),
        ("longest=33", "longest=33 must be in 1..32"),
        ("depth=0", "depth=0 must be in 1..127"),
        ("hits=0", "hits=0 must be in 1..1000000"),
        ("least=17", "least=17 is more than longest=16"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs, said):
    with pytest.raises(UserError, match=said):
        methods.parse(f"rest:{knobs}")


def test_tokens_that_the_model_does_not_have_are_left_out(scene, questions, tmp_path):
    """A tokenizer may have more tokens than its model, and a text may spell them."""
    decoder, checkpoint = scene
    tokenizer = corpora.checkpoints.load_tokenizer(checkpoint)
    added = f"<more-{decoder.config.vocab}>"
    while max(tokenizer.get_vocab().values()) < decoder.config.vocab:
        added = f"<more-{len(tokenizer)}>"
        tokenizer.add_tokens([added])
    texts = tmp_path / "spelled"
    texts.mkdir()
    (texts / "a.txt").write_text(f"before it {added} after it", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora.checkpoints, "load_tokenizer", lambda _: tokenizer)
        method = rest(scene, f"corpus={texts},decontaminate={questions}")
    stored = [token for token in method.corpus.array.tokens.tolist() if token >= 0]
    assert max(stored) < decoder.config.vocab
    assert tokenizer.decode(stored).replace(" ", "") == "beforeitafterit"
