"""Which drafts are kept. Pure: token ids in, counts out."""

from __future__ import annotations

from collections.abc import Sequence


def accept_greedy(drafts: Sequence[int], choices: Sequence[int]) -> int:
    """Length of the longest prefix of `drafts` [n] that the target would have chosen itself.

    `choices` [n + 1] are the target's argmax after the newest token and after each draft; the choice behind the
    accepted prefix is the step's last token (the bonus). Leviathan et al. (arXiv 2211.17192) at temperature 0.
    """
    assert len(choices) == len(drafts) + 1
    for i, draft in enumerate(drafts):
        if draft != choices[i]:
            return i
    return len(drafts)
