"""`train medusa`: the heads' loss, their held-out scores, and the record of ranks that `tree=auto` uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.drafting.tree_choice import MISS, RankRecord
from bench.engine.decoder import Decoder
from bench.train import prompts
from bench.train.conversations import Conversations
from bench.train.entropy import soft_cross_entropy
from bench.train.loop import Batch, Features
from bench.train.training import REGRESSION, Trainer, count_by_kind, ridge_regression, shares_by_kind
from methods.medusa.heads import Heads, HeadsConfig, save_heads
from methods.medusa.knobs import MedusaTraining

_WEIGHT_BY_HEAD = 0.8  # of the loss, from one head to the next (paper, section 2.2.1)
_TOP = 5  # ranks of the first head whose share of hits is reported
_RANKED = 32  # ranks in the record


class HeadsTrainer(Trainer):
    """The heads' loss and scores. Head i at position t predicts token t + 2 + i."""

    Config = MedusaTraining
    title = "Medusa heads"
    scores_text = (
        "`agreement` is the share of tokens that the first head's first choice hits; `top_3` and `top_5`, that one of "
        "its first choices hits; `accept_w`, that the w-th head's first choice hits after those before it did; the "
        "last columns are the agreement by kind of prompt."
    )

    def __init__(self, target: Decoder, config: MedusaTraining, found: Features, made: Conversations, ranking: Tensor):
        super().__init__(target, config, found, made, ranking)
        hidden, vocab = target.config.hidden, len(self.draft_ids)
        newest = config.architecture == "newest"
        self.module = self.heads = Heads(
            HeadsConfig(hidden, config.heads, vocab, config.own_lm_heads, newest, self.draft_vocab)
        ).to(self.device)
        self.soft = newest
        kind = "soft cross-entropy -sum p log q over the draft vocabulary" if self.soft else "cross-entropy"
        self.loss_text = f"{kind}, head i (from 0) weighted {_WEIGHT_BY_HEAD}^i"
        # The heads' input for a token: its embedding at the scale of the states.
        self.embedding = target.final_norm(target.embedding).float() if newest else None
        self._initialise()

    def _initialise(self) -> None:
        """Own LM heads start as the target's. Heads that read the newest token start as the best linear guess of the
        state that they predict (ridge regression)."""
        if self.heads.lm_heads is not None:
            self.heads.lm_heads.data.copy_(self.head.expand_as(self.heads.lm_heads))
        if self.heads.input is not None:
            for head in range(self.config.heads):
                self.heads.input.data[head].copy_(ridge_regression(self._pairs(head)))

    def _pairs(self, head: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.found.batches(self.train_on[:REGRESSION], self.device):
            live = self._live(batch, head)
            yield self._input(batch)[live], batch.final_states[_shifted(live, head + 1)]

    def _live(self, batch: Batch, head: int) -> Tensor:
        """Return the positions [B, n] whose next head + 2 tokens all belong to one answer."""
        live = batch.taught
        for ahead in range(1, head + 2):
            live = live & F.pad(batch.taught, (0, ahead))[:, ahead:]
        return live

    def _input(self, batch: Batch) -> Tensor:
        """Return the heads' input [B, n, d or 2 d]: the final states, and the token that followed."""
        if self.embedding is None:
            return batch.final_states
        return torch.cat((batch.final_states, self.embedding[batch.tokens.roll(-1, 1)]), dim=-1)

    def _logits(self, batch: Batch, head: int, live: Tensor) -> Tensor:
        """Return the logits [m, V'] of one head at the live positions."""
        states = self.heads(head, self._input(batch)[live])
        own = self.heads.lm_heads
        return states @ (self.head if own is None else own[head]).T

    def loss(self, indices: Sequence[int]) -> Tensor:
        """Return the sum over the heads of 0.8^i CE_i per answer token (paper, equation 1).

        Our heads learn the target's whole distribution over the token that they predict, published ones the token.
        """
        batch = self.found.batch(indices).to(self.device)
        teacher = batch.final_states[batch.taught] @ self.head.T if self.soft else None
        place = batch.taught.flatten().cumsum(0).view_as(batch.tokens) - 1  # of a taught position in `teacher`
        total = torch.zeros((), device=self.device)
        for head in range(self.config.heads):
            live = self._live(batch, head)
            logits = self._logits(batch, head, live)
            if teacher is not None:
                entropy = soft_cross_entropy(logits, teacher[place[_shifted(live, head + 1)]])
            else:
                expected = self.places[batch.tokens[_shifted(live, head + 2)]]
                entropy = F.cross_entropy(logits, expected, reduction="sum", ignore_index=-1)
            total = total + _WEIGHT_BY_HEAD**head * entropy
        return total / batch.taught.sum().clamp(min=1)

    def _ranks(self, batch: Batch) -> Tensor:
        """Return the rank of the true token in every head, [B, n, heads] on the CPU; MISS where there is none."""
        ranks = torch.full((*batch.tokens.shape, self.config.heads), MISS, dtype=torch.uint8)
        for head in range(self.config.heads):
            live = self._live(batch, head)
            best = self._logits(batch, head, live).topk(min(_RANKED, len(self.head)), dim=-1).indices
            hit = best == self.places[batch.tokens[_shifted(live, head + 2)]][:, None]
            rank = torch.where(hit.any(-1), hit.int().argmax(-1), MISS)
            ranks[live.cpu(), head] = rank.to("cpu", torch.uint8)
        return ranks

    @torch.inference_mode()
    def scores(self, indices: Sequence[int]) -> dict[str, float]:
        """Return hits of the first head, of each head after those before it, and by kind."""
        tried, hits = np.zeros(self.config.heads), np.zeros(self.config.heads)
        top = np.zeros(_TOP)
        by_kind = torch.zeros(2, len(prompts.KINDS))
        for batch in self.found.batches(indices, self.device):
            ranks, reached = self._ranks(batch), self._live(batch, 0).cpu()
            first = ranks[..., 0][reached]
            top += [int((first <= rank).sum()) for rank in range(_TOP)]
            by_kind += count_by_kind(self.made.kinds[batch.indices], reached, first == 0)
            for head in range(self.config.heads):
                reached = reached & self._live(batch, head).cpu()
                tried[head] += int(reached.sum())
                reached = reached & (ranks[..., head] == 0)
                hits[head] += int(reached.sum())
        shares = (hits / np.maximum(tried, 1)).tolist()
        among = (top / max(1, tried[0])).tolist()
        scores = {"agreement": shares[0], "top_3": among[2], "top_5": among[4]}
        return scores | {f"accept_{w}": share for w, share in enumerate(shares[1:], 2)} | shares_by_kind(by_kind)

    @torch.inference_mode()
    def record(self, indices: Sequence[int]) -> RankRecord:
        """Return the ranks over the answers of some conversations."""
        ranks: list[Tensor] = []
        lengths: list[int] = []
        kinds: list[int] = []
        for batch in self.found.batches(indices, self.device):
            found = self._ranks(batch)
            for row, conversation in enumerate(batch.indices.tolist()):
                taught = batch.taught[row].cpu()
                ranks.append(found[row][taught])
                own = _runs(taught)
                lengths += own
                kinds += [int(self.made.kinds[conversation])] * len(own)
        return RankRecord(torch.cat(ranks).numpy(), np.array(lengths, np.int32), np.array(kinds, np.int8))

    def save(self, folder: Path) -> None:
        """Write the heads with the ranking of tokens and the record of ranks."""
        save_heads(folder, self.heads, self.ranking, self.record(self.held_out))

    def describe(self) -> str:
        """Return the heads' form."""
        lm_heads = "with their own LM heads" if self.config.own_lm_heads else "sharing the target's LM head"
        return (
            f"architecture {self.config.architecture}, {self.config.heads} heads {lm_heads}, draft vocabulary "
            f"{self.draft_vocab or 'whole'}"
        )


def _shifted(live: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
    """Return the positions `ahead` of the live ones [B, n], as an index."""
    rows, columns = live.nonzero(as_tuple=True)
    return rows, columns + ahead


def _runs(taught: Tensor) -> list[int]:
    """Return the lengths of the runs of True."""
    edges = torch.diff(F.pad(taught.int(), (1, 1)))
    starts, ends = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
    lengths: list[int] = (ends - starts).tolist()
    return lengths
