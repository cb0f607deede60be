"""Corpora of retrieval methods: a model's own answers or a folder of text, without the test questions.

A corpus is built when it is first used, with progress, and cached by what it is made of: the files, the tokenizer, and
the questions that it must not contain. The rule is that of training data (see `bench.decontaminate`): what shares 13
words in a row with a question, or contains a whole shorter one, is left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.decontaminate import Filter, question_sets
from bench.drafting.indexes import END
from bench.drafting.indexes.counted_tree import tree_of_continuations
from bench.drafting.indexes.suffix_array import SuffixArray
from bench.drafting.tree import ROOT
from bench.drafting.worth import Found
from bench.errors import UserError, program
from bench.files import cache_root, replacing, sha256, user_path, writing
from bench.models import checkpoints, conversation_files
from bench.models.chat import ChatFormat, tokenizer_digest
from bench.progress import Progress, progress

if TYPE_CHECKING:
    from bench.engine.decoder import Decoder
    from bench.models.checkpoints import Checkpoint

OWN = "own"  # in place of a folder
HELP = "where to look: own, the model's own answers that come with the project; or a folder of text files"
DECONTAMINATE = "official, or a question file: what shares text with its questions, or the mini set's, is left out"
_FORMAT = 2
_FACTS = "facts.json"
_Document = tuple[str, list[list[int]]]  # its whole text, and the token ids of those parts that are looked in


@dataclass(frozen=True)
class Corpus:
    """Texts to look in."""

    array: SuffixArray
    facts: dict[str, Any]  # what it is made of, for the record

    @property
    def memory(self) -> str:
        """What a method that looks here remembers."""
        return f"corpus:{self.array.digest}"


class Reader:
    """Looks for the newest tokens of a growing text in a corpus."""

    def __init__(self, array: SuffixArray, longest: int, tokens: Many[int]):
        """`longest`: of the suffixes to look for, at most `suffix_array.DEPTH`."""
        self.array, self.longest = array, longest
        self.recent = list(tokens[-longest:])
        self.reach = longest  # no longer suffix of the text occurs

    def extend(self, tokens: Many[int]) -> None:
        """Append tokens."""
        self.recent = [*self.recent, *tokens][-self.longest :]
        self.reach = min(self.longest, self.reach + len(tokens))

    def find(self, least: int, most: int, depth: int, hits: int) -> list[Found]:
        """Return what followed the longest suffix of at least `least` tokens, if it occurs, most frequent first.

        At most `most` tokens, at most `depth` in a row, judged by at most `hits` occurrences.
        """
        found = self.array.find(self.recent, least, self.reach) if least <= self.reach else None
        self.reach = least - 1 if found is None else found.length
        if found is None:
            return []
        rows = self.array.continuations(found, depth, hits)
        tree, total = tree_of_continuations(rows, most), np.count_nonzero(rows[:, 0] != END)
        wholes = [total if parent == ROOT else tree.counts[parent] for parent in tree.parents]
        shares = [count / whole for count, whole in zip(tree.counts, wholes, strict=True)]
        return [Found(found.length, tree.tokens, tree.parents, shares, kind=1)]


def check(method: str, asked: str, model: str) -> None:
    """Refuse a corpus that is not there.

    Raises:
        UserError: no conversations come with the project for the model, or there is no such folder.

    """
    if asked != OWN:
        _files(method, asked)
    elif not conversation_files.files_of(model):
        raise UserError(
            f"no conversations come with the project for model {model!r}, and {method} looks in them: write them "
            f"(`{program()} train conversations`, then `train collect`, each with --model), or name a folder of text "
            f"files ({method}:corpus=FOLDER)"
        )


def _known(tokens: Many[int], vocab: int) -> Iterator[list[int]]:
    """Yield what is between tokens that the model has not: a tokenizer may have more than its model."""
    for known, piece in itertools.groupby(tokens, lambda token: token < vocab):
        if known:
            yield list(piece)


def load(method: str, asked: str, target: Decoder, decontaminate: str) -> Corpus:
    """Return a corpus as token ids of the target, built if it is not in the cache.

    Raises:
        UserError: it is not there, nothing of it is left, or it cannot be cached.

    """
    from bench.models.loading import checkpoint_of

    checkpoint = checkpoint_of(target)
    check(method, asked, checkpoint.name)
    chat = ChatFormat(checkpoints.load_tokenizer(checkpoint))
    sets, missing = question_sets([decontaminate], partial(print, file=sys.stderr))
    files = conversation_files.files_of(checkpoint.name) if asked == OWN else _files(method, asked)
    made_of = [_FORMAT, checkpoint.sha256, tokenizer_digest(chat.tokenizer)]
    made_of += [list(map(sha256, files)), [found.sha256 for found in sets]]
    folder = cache_root() / "corpora" / hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    with contextlib.suppress(UserError, OSError, ValueError):  # not there, or cut short by a crash
        return Corpus(SuffixArray.load(folder), json.loads((folder / _FACTS).read_text(encoding="utf-8")))

    filters, kept, left_out = Filter(sets), list[list[int]](), 0
    with progress(len(files), "reading the corpus (files)") as bar:
        for text, parts in _conversations(files, checkpoint, chat, bar) if asked == OWN else _texts(files, chat, bar):
            if filters.overlaps(text):
                left_out += 1
            else:
                kept += [piece for part in parts for piece in _known(part, target.config.vocab)]
    if not kept:
        raise UserError(
            f"{method}:corpus={asked}: nothing is left to look in: all of it shares text with the questions, or was "
            "written by other weights of this model; name a folder of other text files"
        )
    facts = {"source": asked, "texts": len(kept), "tokens": sum(map(len, kept)), "left_out": left_out}
    facts |= {"decontaminated": [found.name for found in sets], "missing": missing}
    array = SuffixArray.build(kept)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        array.save(folder)
        with replacing(folder / _FACTS) as temporary:
            temporary.write_text(json.dumps(facts), encoding="utf-8")
    return Corpus(array, facts)


def _files(method: str, asked: str) -> list[Path]:
    """Return all files in a folder and below, but for hidden ones."""
    folder = user_path(asked)
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    found = [folder / name for name in names if not any(part.startswith(".") for part in name.parts)]
    if not found:
        reason = "has no files" if folder.is_dir() else "is not a folder"
        raise UserError(f"{method}:corpus={asked}: {folder} {reason}: name a folder of text files, or {OWN}")
    return found


def _texts(files: Many[Path], chat: ChatFormat, bar: Progress) -> Iterator[_Document]:
    """Yield each file."""
    for path in files:
        bar.at(path.name)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise UserError(f"{path} cannot be read as text ({reason}): remove it from the corpus") from error
        yield text, [chat.encode(text)]
        bar.add(1)


def _conversations(files: Many[Path], checkpoint: Checkpoint, chat: ChatFormat, bar: Progress) -> Iterator[_Document]:
    """Yield each conversation, of which the answers are looked in."""
    for path in files:
        bar.at(path.name)
        if (columns := conversation_files.read(path, checkpoint)) is not None:
            ends = np.cumsum(columns["lengths"])[:-1]
            for tokens, chosen in zip(*(np.split(columns[name], ends) for name in ("tokens", "chosen")), strict=True):
                borders = np.flatnonzero(np.diff(chosen, prepend=False, append=False)).reshape(-1, 2)
                yield chat.answer_text(tokens.tolist()), [tokens[begin:end].tolist() for begin, end in borders]
        bar.add(1)
