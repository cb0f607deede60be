"""Which device holds which layer of a model that is too large for one device.

Everything that methods use (embedding, exit states, LM head, draft models) stays on the first device; a forward pass
moves its states from device to device and back. Such models have not been timed yet.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bench.errors import UserError

_FILLED = 0.85  # of a device's free memory: the rest is for caches, draft models and activations
_GIB = 2**30


def place(layer_bytes: int, layers: int, other_bytes: int, free_bytes: Sequence[int]) -> list[int]:
    """Return the device number of each layer: the first device takes everything else and as many layers as fit.

    A single device takes all layers, and so does the first of several if they fit there.

    Raises:
        UserError: the model does not fit into all devices together.

    """
    room = [int(_FILLED * free) for free in free_bytes]
    needed = other_bytes + layers * layer_bytes
    if len(room) == 1 or needed <= room[0]:
        return [0] * layers
    room[0] -= other_bytes
    homes = [device for device, left in enumerate(room) for _ in range(max(0, left) // layer_bytes)]
    if needed <= free_bytes[0] and len(homes) < layers:
        return [0] * layers  # tight, but the other devices have no memory free
    if len(homes) < layers or room[0] < 0:
        free_gib = ", ".join(f"{free / _GIB:.1f}" for free in free_bytes)
        raise UserError(
            f"a model of {needed / _GIB:.1f} GiB does not fit into {len(room)} devices with {free_gib} GiB free: take "
            "a smaller model or --dtype bfloat16"
        )
    return homes[:layers]


def choose_homes(device: torch.device, layer_bytes: int, layers: int, other_bytes: int) -> list[torch.device]:
    """Return the device of each layer: `device`, then the other CUDA devices if it is too small."""
    if device.type != "cuda":
        return [device] * layers
    first = device.index or 0
    devices = [device, *(torch.device("cuda", i) for i in range(torch.cuda.device_count()) if i != first)]
    free = [torch.cuda.mem_get_info(device)[0]]
    if other_bytes + layers * layer_bytes > _FILLED * free[0]:  # to ask a device takes some of its memory
        free += [torch.cuda.mem_get_info(one)[0] for one in devices[1:]]
    return [devices[number] for number in place(layer_bytes, layers, other_bytes, free)]
