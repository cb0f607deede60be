"""EAGLE-3: EAGLE's head on states after several layers, trained on its own outputs (Li et al., arXiv 2503.01840).

The features are a projection of the target's states after a low, a middle and a high layer (section 3.1), attention
reads the embedding next to them, and a smaller vocabulary is drafted. While it drafts ahead, the head reads its own
outputs, as it did in training (training-time test). EAGLE-2's tree verifies; `eagle3:paper` drafts that. See `eagle`
for what goes beyond the papers. Needs a trained head.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from bench.drafting.published import Published
from methods.eagle.drafting import published_call
from methods.eagle.method import Eagle
from methods.eagle3 import knobs
from methods.eagle3.knobs import Eagle3Config


class Eagle3(Eagle):
    """Drafts with a decoder layer on states after several layers of the target."""

    Config = Eagle3Config
    presets = knobs.presets
    published = Published("EAGLE-3's head", drafts=6, call_per_draft=True, call=partial(published_call, version=3))
    version: ClassVar[int] = 3
