"""The suffix array against a scan of its documents, and its files against damage."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest
from index_texts import ends, random_text

from bench.drafting.indexes import END
from bench.drafting.indexes.suffix_array import DEPTH, HEADER, SuffixArray
from bench.errors import UserError


def documents_of(rng):
    return [random_text(rng, 50) for _ in range(rng.randint(1, 6))]


def queries(rng, documents):
    """Texts that end in a passage of a document more often than not."""
    for _ in range(12):
        text = random_text(rng, 20)
        if (document := rng.choice(documents)) and rng.random() < 0.7:
            start = rng.randrange(len(document))
            text += document[start : start + rng.randint(1, 20)]
        yield text


def counted(rows):
    """Continuations without END, counted in the order in which they come first."""
    found = (tuple(token for token in row if token != END) for row in rows.tolist())
    return Counter(row for row in found if row)


def following(string, documents, tokens):
    """What follows each occurrence of a string: at most so many tokens of its document."""
    return [tuple(document[end : end + tokens]) for document in documents for end in ends(string, document)]


def test_the_longest_suffix_its_occurrences_and_what_follows_them():
    for seed in range(60):
        rng = random.Random(seed)
        documents = documents_of(rng)
        corpus = SuffixArray.build(documents)
        for text in queries(rng, documents):
            most = rng.randint(1, DEPTH)
            least = rng.randint(1, most)
            fitting = [
                length for length in range(least, min(most, len(text)) + 1) if following(text[-length:], documents, 1)
            ]
            hits = corpus.find(text, least, most)
            if not fitting:
                assert hits is None
                continue
            assert hits is not None
            assert hits.length == max(fitting)
            tokens = rng.randint(1, 12)
            wanted = following(text[-hits.length :], documents, tokens)
            assert hits.high - hits.low == len(wanted)
            found = corpus.continuations(hits, tokens)
            assert found.shape == (len(wanted), tokens)
            assert counted(found) == Counter(filter(None, wanted))
            assert found.tolist() == sorted(found.tolist())


def test_suffixes_are_sorted_and_no_document_reaches_into_the_next():
    for seed in range(30):
        documents = documents_of(random.Random(seed))
        corpus = SuffixArray.build(documents)
        joined = [token for document in documents for token in (*document, END)]
        assert corpus.tokens.tolist() == joined

        def beginning(position, joined=joined):
            found = joined[position : position + DEPTH]
            return found[: found.index(END) + 1] if END in found else found

        order = corpus._order.tolist()
        assert order == sorted(range(len(joined)), key=lambda position: (beginning(position), position))


def test_long_repetitions_take_every_round_of_sorting():
    documents = [[1] * 200, [1] * 31 + [2], [1, 2] * 50]
    corpus = SuffixArray.build(documents)
    hits = corpus.find([1] * 16)
    assert hits.length == 16
    assert counted(corpus.continuations(hits, 16)) == Counter(filter(None, following([1] * 16, documents, 16)))


def test_of_many_occurrences_some_are_taken_at_even_distances():
    documents = [[1000, number] for number in range(100)]
    corpus = SuffixArray.build(documents)
    hits = corpus.find([1000], least=1)
    assert hits.high - hits.low == 100
    assert list(counted(corpus.continuations(hits, 4, most=4))) == [(0,), (25,), (50,), (75,)]
    assert list(counted(corpus.continuations(hits, 4, most=3))) == [(0,), (33,), (66,)]
    assert len(corpus.continuations(hits, 4, most=100)) == 100


def test_tokens_beyond_16_bits():
    corpus = SuffixArray.build([[65_536, 151_935, 2**31 - 1], [0, 5]])
    assert counted(corpus.continuations(corpus.find([65_536], least=1))) == {(151_935, 2**31 - 1): 1}
    assert corpus.find([0, 151_935]) is None  # 65,536 in 16 bits is 0


def test_texts_without_a_match():
    corpus = SuffixArray.build([[], [1], []])
    assert corpus.find([]) is None
    assert corpus.find([2, 3]) is None
    assert corpus.find([2], least=1) is None
    assert corpus.find([1, 1]) is None
    assert not counted(corpus.continuations(corpus.find([1], least=1))), "the document ends there"


def test_an_empty_corpus_is_refused():
    with pytest.raises(UserError, match="the corpus is empty: give at least one text"):
        SuffixArray.build([])


def test_negative_tokens_are_refused():
    for document in ([1, END, 2], [1, -5]):
        with pytest.raises(AssertionError):
            SuffixArray.build([document])


def test_a_stored_corpus_answers_the_same(tmp_path):
    rng = random.Random(4)
    documents = documents_of(rng)
    built = SuffixArray.build(documents)
    built.save(tmp_path / "corpus")
    loaded = SuffixArray.load(tmp_path / "corpus")
    assert loaded.digest == built.digest == SuffixArray.build(documents).digest
    assert not loaded.tokens.flags.writeable, "mapped, not read"
    for text in queries(rng, documents):
        hits = built.find(text, 1)
        assert loaded.find(text, 1) == hits
        if hits:
            assert loaded.continuations(hits).tolist() == built.continuations(hits).tolist()


def test_the_digest_tells_corpora_apart():
    digests = {SuffixArray.build(documents).digest for documents in ([[1, 2]], [[1], [2]], [[2, 1]], [[1, 2], []])}
    assert len(digests) == 4


def test_a_new_corpus_replaces_the_one_in_the_folder(tmp_path):
    SuffixArray.build([[1, 2, 3]]).save(tmp_path)
    newer = SuffixArray.build([[4, 5]])
    newer.save(tmp_path)
    newer.save(tmp_path)
    assert SuffixArray.load(tmp_path).digest == newer.digest
    assert len(list(tmp_path.iterdir())) == 2


def test_a_corpus_can_replace_the_file_that_it_is_mapped_from(tmp_path):
    SuffixArray.build([[1, 2, 3]]).save(tmp_path)
    loaded = SuffixArray.load(tmp_path)
    loaded.save(tmp_path)
    assert SuffixArray.load(tmp_path).tokens.tolist() == [1, 2, 3, END]


def test_a_save_that_fails_leaves_the_old_corpus(tmp_path, monkeypatch):
    older = SuffixArray.build([[1, 2, 3]])
    older.save(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bench.drafting.indexes.suffix_array.json.dumps", full)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device; choose another folder"):
        SuffixArray.build([[4, 5]]).save(tmp_path)
    assert SuffixArray.load(tmp_path).digest == older.digest


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another folder"):
        SuffixArray.build([[1]]).save(tmp_path / "file")


def test_no_corpus(tmp_path):
    with pytest.raises(UserError, match=r"no corpus in .*nowhere: corpus\.json is missing; build it first"):
        SuffixArray.load(tmp_path / "nowhere")


def _stored(folder):
    (path,) = folder.glob("*.int32")
    return path


def _cut(folder):
    path = _stored(folder)
    path.write_bytes(path.read_bytes()[:-4])


def _lengthen(folder):
    with _stored(folder).open("ab") as file:
        file.write(bytes(4))


def _flip(folder):
    path = _stored(folder)
    content = bytearray(path.read_bytes())
    content[9] ^= 1
    path.write_bytes(content)


def _header(**changes):
    def change(folder):
        header = json.loads((folder / HEADER).read_text()) | changes
        (folder / HEADER).write_text(json.dumps({key: value for key, value in header.items() if value is not None}))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, r"damaged: corpus-.*\.int32 has 28 bytes, not 32"),
        (_lengthen, r"damaged: corpus-.*\.int32 has 36 bytes, not 32"),
        (_flip, "damaged: its digest is .*, not "),
        (lambda folder: _stored(folder).unlink(), r"corpus-.*\.int32 is missing; build it first"),
        (lambda folder: (folder / HEADER).write_text("{"), "damaged: "),
        (lambda folder: (folder / HEADER).write_bytes(b"\xff"), "damaged: "),
        (_header(tokens=None), "damaged: tokens: missing"),
        (_header(tokens=2**53), "damaged: .* bytes"),
        (_header(tokens=0), "damaged: .* bytes"),
        (_header(sha256="../x"), "damaged: sha256"),
        (_header(version=2, more=1), "its version is 2, this program needs 1; build it again"),
    ],
)
def test_a_damaged_corpus_is_refused(damage, message, tmp_path):
    SuffixArray.build([[1, 2, 3]]).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        SuffixArray.load(tmp_path)


def test_every_flipped_bit_is_noticed(tmp_path):
    SuffixArray.build([[1, 2]]).save(tmp_path)
    path = _stored(tmp_path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(UserError, match="damaged"):
            SuffixArray.load(tmp_path)


def test_a_look_up_costs_the_logarithm_of_the_corpus(monkeypatch):
    rng = np.random.default_rng(0)
    corpus = SuffixArray.build([rng.integers(0, 50, 20_000).tolist()])
    asked = []
    tokens = corpus.tokens

    class Counted:
        def __getitem__(self, key):
            asked.append(key)
            return tokens[key]

    corpus.tokens = Counted()
    corpus.find(tokens[100:130].tolist())
    assert len(asked) <= 4 * 2 * 17
