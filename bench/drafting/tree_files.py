"""Static trees of drafts by heads, as `tree=` takes them: by name, in a JSON file, or spelled out as rank paths."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from bench.drafting.tree import tree_from_paths
from bench.engine import MAX_DRAFTS
from bench.errors import UserError
from bench.files import read_bounded, user_path
from bench.typed_json import decode

TREES = Path(__file__).parent / "trees"
PUBLISHED = "mc_sim_7b_63"
_NAME = re.compile(r"\w+")
CHAIN = "chain"  # the first choice of every head
NO_DRAFTS = "none"  # the tree that is chosen where no draft pays
_SPELLED = re.compile(r"[0-9]+(-[0-9]+)*(/[0-9]+(-[0-9]+)*)*")
_SHOWN_CHARS = 80

RankPath = tuple[int, ...]  # the rank in each head
_Nodes = list[Annotated[list[Annotated[int, Field(ge=0, lt=2**20)]], Field(min_length=1, max_length=MAX_DRAFTS)]]


@dataclass(frozen=True)
class _TreeFile:
    """A tree with its source; a file may also be the bare list of nodes."""

    nodes: _Nodes
    source: str = ""


def read_tree(asked: str, names: str = "chain, auto") -> list[RankPath]:
    """Return the rank paths of a tree. `names`: what else the knob takes, for messages.

    Raises:
        ValueError: no such tree, or not a tree of 1 to MAX_DRAFTS drafts.

    """
    if asked == NO_DRAFTS:
        return []
    shown = asked if len(asked) <= _SHOWN_CHARS else f"{asked[:_SHOWN_CHARS]}..."
    try:
        paths = [tuple(path) for path in _nodes(asked)]
        tree_from_paths(paths)
    except (OSError, UserError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"tree={shown} is neither {names}, {NO_DRAFTS}, {PUBLISHED}, rank paths such as 0/0-0/1, nor a JSON "
            f"file that can be read ({reason})"
        ) from error
    except ValueError as error:
        raise ValueError(f"tree={shown} is not a tree: {error}") from error
    if not paths:
        raise ValueError(f"tree={shown} has no drafts: take tree={NO_DRAFTS} to draft nothing")
    if len(paths) > MAX_DRAFTS:
        raise ValueError(f"tree={shown} has {len(paths)} drafts, more than the {MAX_DRAFTS} of a forward pass")
    return paths


def _nodes(asked: str) -> Sequence[Sequence[int]]:
    """Decode the nodes, wherever they are."""
    if _SPELLED.fullmatch(asked):
        return decode(_Nodes, f"[[{asked.replace('-', ',').replace('/', '],[')}]]")
    named = TREES / f"{asked}.json"
    path = named if _NAME.fullmatch(asked) and named.is_file() else user_path(asked)
    text = read_bounded(path)
    return decode(_TreeFile, text).nodes if text.lstrip().startswith(b"{") else decode(_Nodes, text)


def paths_for(asked: str, heads: int) -> list[RankPath]:
    """Return the rank paths of a tree or of the chain; the published tree is cut to the number of heads."""
    if asked == CHAIN:
        return chain_paths(heads)
    return [path for path in read_tree(asked) if asked != PUBLISHED or len(path) <= heads]


def check_fits(asked: str, paths: Sequence[RankPath], heads: int, tokens: int) -> None:
    """Raise UserError if a tree is too deep for the heads or has a rank beyond the tokens that they rank."""
    if (rank := max(map(max, paths), default=0)) >= tokens:
        raise UserError(f"tree={asked} has rank {rank}, but heads rank {tokens} tokens: take a smaller one")
    if (depth := max(map(len, paths), default=0)) > heads:
        raise UserError(f"tree={asked} is {depth} drafts deep, but only {heads} heads draft: take a shallower one")


def chain_paths(length: int) -> list[RankPath]:
    """Return the first choices of `length` heads in a row."""
    return [(0,) * depth for depth in range(1, length + 1)]


def spell(paths: Sequence[RankPath]) -> str:
    """Return paths as `tree=` takes them."""
    ordered = sorted(paths, key=lambda path: (len(path), path))
    return "/".join("-".join(map(str, path)) for path in ordered) or NO_DRAFTS
