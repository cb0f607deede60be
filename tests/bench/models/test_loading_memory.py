"""A model is loaded without a second copy of it, or of its largest matrix, in memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from bench.engine.kernels import native
from bench.files import save_tensors
from bench.models.checkpoints import Checkpoint
from bench.models.loading import load_decoder
from bench.run import memory
from bench.run.memory import PeakMeter

MIB = 2**20
CPU = torch.device("cpu")


def resident_bytes() -> int:
    """Memory of this process now."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


@pytest.fixture(scope="module", params=["model.safetensors", "pytorch_model.bin"])
def checkpoint(request, tmp_path_factory) -> Checkpoint:
    """Two matrices of 64 MiB each, in float32, and little else."""
    folder = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=1 << 17, hidden_size=128, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    config.save_pretrained(folder)
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(config)
    weights = {name: torch.randn(like.shape).mul_(0.02) for name, like in model.named_parameters()}
    path = folder / request.param
    if path.suffix == ".bin":
        torch.save(weights, path)
    else:
        save_tensors(weights, path, {"format": "pt"})
    return Checkpoint("two-matrices", folder, "", None)


@pytest.mark.skipif(not memory._CLEAR.exists(), reason="a peak can be reset on Linux only")
@pytest.mark.skipif(bool(native.why_not()), reason="no compiler here")
@pytest.mark.parametrize(
    ("options", "mib"),
    [
        ({"dtype": torch.float32}, 128),
        ({"dtype": torch.float32, "layout": "plain"}, 128),
        ({"dtype": torch.bfloat16}, 64),
        ({"dtype": torch.float32, "quantize": "q4"}, 64 + 17),  # the embedding is as it was
    ],
    ids=["float32", "plain", "bfloat16", "q4"],
)
def test_the_peak_of_loading_is_little_more_than_the_model(checkpoint, options, mib):
    meter, before = PeakMeter(CPU), resident_bytes()
    with meter.of("loading"):
        if not meter._reset():
            pytest.skip("this container does not let a peak be reset")
        decoder = load_decoder(checkpoint, CPU, max_len=16, **options)
    kept = decoder.embedding.nbytes + decoder.head.nbytes
    assert mib * MIB <= kept <= (mib + 1) * MIB
    grown = meter.at_work["loading"] - before
    assert grown <= 1.1 * kept + 24 * MIB, f"{grown / MIB:.0f} MiB for {kept / MIB:.0f}"
