"""A suffix array of a corpus, as in REST (arXiv 2311.08252): where a text's newest tokens occur and what follows them.

Suffixes are sorted by their first `DEPTH` tokens, by prefix doubling (Manber and Myers, 1993). A corpus takes 8 bytes
per token on disk, from where it is mapped into memory.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field
from typing_extensions import TypedDict

from bench.drafting.indexes import END
from bench.errors import UserError
from bench.files import first_line, replacing
from bench.progress import Progress, progress
from bench.typed_json import Count, MismatchError, read

Ints = npt.NDArray[np.int32]
DEPTH = 32  # a context of 16 tokens and 16 after it
ROUNDS = DEPTH.bit_length()  # of sorting: 1, 2, 4, .. DEPTH tokens
VERSION = 1
HEADER = "corpus.json"


class Hits(NamedTuple):
    """The occurrences of a string: a range of the suffix array."""

    length: int  # of the string, in tokens
    low: int
    high: int


class Header(TypedDict):
    """What is stored with the array."""

    version: Count
    tokens: Count  # each document's END included
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # of the array: int32 [2, tokens], row by row


class SuffixArray:
    """A corpus with its suffixes in sorted order. Documents end with END, which no match crosses."""

    def __init__(self, stored: Ints):
        """`stored` [2, n]: the tokens, and the positions of the suffixes in sorted order."""
        self._stored = stored
        self.tokens, self._order = np.asarray(stored[0]), np.asarray(stored[1])
        self.digest = hashlib.sha256(np.ascontiguousarray(stored).data).hexdigest()

    @classmethod
    def build(cls, documents: Iterable[Sequence[int]]) -> SuffixArray:
        """Sort the suffixes of some documents of token ids in 0..2^31 - 1: O(n log n).

        Raises:
            UserError: there are no documents.

        """
        joined, count = array("i"), 0
        for document in documents:
            joined.extend(document)
            joined.append(END)
            count += 1
        if not count:
            raise UserError("the corpus is empty: give at least one text")
        tokens = np.frombuffer(joined, np.int32)
        assert tokens.min() == END, "token ids are not negative"
        assert np.count_nonzero(tokens == END) == count, "token ids are not negative"
        with progress(ROUNDS, f"sorting a corpus of {len(tokens):,} tokens") as shown:
            return cls(np.stack((tokens, _order(tokens, shown))))

    def save(self, folder: Path) -> None:
        """Write the corpus to `folder`. One that is already there is replaced once this one is complete.

        Raises:
            UserError: it cannot be written.

        """
        header = Header(version=VERSION, tokens=len(self.tokens), sha256=self.digest)
        stored = _stored_in(folder, header)
        try:
            with replacing(stored) as path, path.open("wb") as file:
                self._stored.tofile(file)
            with replacing(folder / HEADER) as path:
                path.write_text(json.dumps(header) + "\n", encoding="utf-8")
            for path in folder.glob("corpus-*.int32"):
                if path != stored:
                    path.unlink()
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from error

    @classmethod
    def load(cls, folder: Path) -> SuffixArray:
        """Return the corpus in `folder`, mapped into memory and checked by its digest.

        Raises:
            UserError: there is none, it is damaged, or another version of the program wrote it.

        """
        try:
            header = read(Header, folder / HEADER, lenient=True)
            if header["version"] != VERSION:
                reason = f"its version is {header['version']}, this program needs {VERSION}"
                raise UserError(f"cannot read the corpus in {folder}: {reason}; build it again")
            path, size = _stored_in(folder, header), 8 * header["tokens"]
            if path.stat().st_size != size:
                raise MismatchError(f"{path.name} has {path.stat().st_size:,} bytes, not {size:,}")
            found = cls(np.memmap(path, np.int32, "r", shape=(2, header["tokens"])))
            if found.digest != header["sha256"]:
                raise MismatchError(f"its digest is {found.digest[:16]}.., not {header['sha256'][:16]}..")
        except FileNotFoundError as error:
            raise UserError(f"no corpus in {folder}: {Path(error.filename).name} is missing; build it first") from error
        except (OSError, ValueError) as error:
            raise UserError(f"the corpus in {folder} is damaged: {first_line(error)}; build it again") from error
        return found

    def find(self, text: Sequence[int], least: int = 2, most: int = 16) -> Hits | None:
        """Return the occurrences of the longest suffix of `text` with least..most tokens that occurs; None: none does.

        Takes O(log(most) log(n)) comparisons of suffixes.
        """
        assert 1 <= least <= most <= DEPTH, (least, most)
        best, most = None, min(most, len(text))
        while least <= most:  # a suffix occurs if a longer one does
            length = (least + most) // 2
            if (hits := self._occurrences(list(text[-length:]))) is None:
                most = length - 1
            else:
                best, least = hits, length + 1
        return best

    def _occurrences(self, string: list[int]) -> Hits | None:
        length = len(string)

        def beginning(position: np.int32) -> list[int]:
            found: list[int] = self.tokens[int(position) : int(position) + length].tolist()
            return found

        low = bisect_left(self._order, string, key=beginning)
        if low == len(self._order) or beginning(self._order[low]) != string:
            return None
        return Hits(length, low, bisect_right(self._order, string, low, key=beginning))

    def continuations(self, hits: Hits, tokens: int = 10, most: int = 5000) -> Ints:
        """Return the continuations of some occurrences in sorted order [n, tokens], with END from a document's end on.

        Of more than `most` occurrences, `most` evenly spaced ones in sorted order are used.
        """
        found = hits.high - hits.low
        picked = hits.low + np.arange(min(found, most)) * found // min(found, most)
        starts = self._order[picked].astype(np.int64) + hits.length
        rows: Ints = self.tokens[np.minimum(starts[:, None] + np.arange(tokens), len(self.tokens) - 1)]
        rows[np.logical_or.accumulate(rows == END, axis=1)] = END
        is_sorted = hits.length + tokens <= DEPTH
        return rows if is_sorted else rows[np.lexsort(rows.T[::-1])]


def _stored_in(folder: Path, header: Header) -> Path:
    """Return the array's file. Its name changes with its content, so that the header always fits it."""
    return folder / f"corpus-{header['sha256'][:16]}.int32"


def _order(tokens: Ints, shown: Progress) -> Ints:
    """Return the positions [n] of the suffixes sorted by up to `DEPTH` tokens, and of equal ones by position."""
    places = np.arange(len(tokens))
    ends = np.flatnonzero(tokens == END)
    left = ends[np.searchsorted(ends, places)] - places  # tokens before the next END
    ranks = _ranks(tokens)  # of the suffixes' first `width` tokens; 0 for END
    width = 1
    while width < DEPTH:
        shown.add(1)
        whole = left >= width
        second = np.zeros_like(ranks)
        second[whole] = ranks[places[whole] + width]
        refined = _ranks(ranks * len(tokens) + second)
        if refined.max() == ranks.max():  # no ranks were split, so none would be later
            break
        ranks, width = refined, 2 * width
    shown.add(1)
    return np.argsort(ranks, kind="stable").astype(np.int32)


def _ranks(values: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Return the rank of each value among the distinct ones, from 0."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)
