"""DSpark: DFlash's blocks, each draft aware of the one before it (arXiv 2607.05147).

A low-rank Markov head adds to the logits of each place what the token before it makes likely, so drafts are chosen from
left to right after one pass. A confidence head says how likely each one is accepted. Needs a trained checkpoint for
the target: DeepSpec's.

Beyond the paper: as `dflash`. `dspark:paper` draws drafts when sampling and verifies whole blocks, as its Table 1;
`threshold` cuts them at the first confidence below it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bench.drafting import trained
from bench.drafting.sampling import Sampler
from bench.engine.decoder import Decoder
from bench.engine.products import Linear
from bench.engine.quantize import GROUP
from bench.errors import UserError
from methods.dflash.method import Chosen, DFlash
from methods.dflash.network import Form, read_form
from methods.dspark import knobs
from methods.dspark.knobs import DSparkConfig

_BEFORE, _AFTER = "markov_head.markov_w1.weight", "markov_head.markov_w2.weight"
_WEIGHT, _BIAS = "confidence_head.proj.weight", "confidence_head.proj.bias"


class DSpark(DFlash):
    """Drafts blocks from left to right."""

    Config = DSparkConfig
    presets = knobs.presets

    @classmethod
    def read_form(cls, folder: Path, model: trained.Dimensioned) -> Form:
        """Read config.json. Raises UserError if it is not this method's, or for another model."""
        form = read_form(folder, model)
        if not form.file.markov_rank:
            raise UserError(f"{folder} has no Markov head (markov_rank): it is for dflash:weights=...")
        if form.file.markov_head_type != "vanilla":
            kind = form.file.markov_head_type
            raise UserError(f"the Markov head in {folder} is of type {kind!r}: only 'vanilla' is supported")
        return form

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all weights by name."""
        file, c = self.form.file, self.form.layers
        shapes = self.form.shapes() | dict.fromkeys((_BEFORE, _AFTER), (c.vocab, file.markov_rank))
        if file.enable_confidence_head:
            width = c.hidden + file.markov_rank * file.confidence_head_with_markov
            shapes |= {_WEIGHT: (1, width), _BIAS: (1,)}
        return shapes

    def add_heads(self, stored: dict[str, Tensor], target: Decoder) -> None:
        """Take the Markov head and the confidence head."""
        before, after = (stored[name].to(target.device, target.dtype) for name in (_BEFORE, _AFTER))
        self.before = before  # [V, r]
        quantize = "none" if after.shape[1] % GROUP else self.quantize
        self.after = Linear(after, layout=target.layout, quantize=quantize)
        self.confidence: tuple[Tensor, Tensor] | None = None
        if _WEIGHT in stored:
            self.confidence = stored[_WEIGHT][0].to(target.device).float(), stored[_BIAS].to(target.device).float()

    def choose(self, states: Tensor, logits: Tensor, newest: int, sampler: Sampler | None) -> Chosen:
        """Choose drafts from left to right, as `DFlash.choose` says."""
        latent = self.before[[newest]]  # [1, r], of the token before
        chosen: list[Tensor] = []
        confidences: list[Tensor] = []
        drawn: list[Tensor] = []
        for base, state in zip(logits, states, strict=True):
            row = base + self.after(latent)[0].float()
            confidences.append(self._confidence(row, state, latent[0]))
            if sampler is None:
                chosen.append(row.argmax())
            else:
                drawn.append(sampler.probabilities(row[None])[0])
                chosen.append(torch.tensor(sampler.draw(drawn[-1]), device=row.device))
            latent = self.before[chosen[-1]][None]
        said, ids = torch.stack((torch.stack(confidences).double(), torch.stack(chosen).double())).tolist()
        return Chosen([int(token) for token in ids], said, drawn or None)

    def _confidence(self, logits: Tensor, state: Tensor, latent: Tensor) -> Tensor:
        """Return how likely a draft is accepted, from 0 to 1: as its head says, else the largest probability."""
        if self.confidence is None:
            return logits.softmax(-1).max()
        weight, bias = self.confidence
        read = torch.cat((state, latent)) if self.form.file.confidence_head_with_markov else state
        return (read.float() @ weight + bias[0]).sigmoid()
