"""Which device holds which layer of a model that is too large for one.

All that methods touch (embedding, exit states, LM head, draft models) stays on the first device; a pass hands its
states from device to device and back. Untimed territory: no figures of such a model have been taken yet.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bench.errors import UserError

_FILLED = 0.85  # of a device's free memory: the rest is for caches, draft models and what passes need
_GIB = 2**30


def place(layer_bytes: int, layers: int, other_bytes: int, free_bytes: Sequence[int]) -> list[int]:
    """The number of the device for each layer, in order: the first ones on the first device, beside everything else.

    One device is given all where it has room, and where it is the only one.

    Raises:
        UserError: it does not fit into all of them together.

    """
    room = [int(_FILLED * free) for free in free_bytes]
    needed = other_bytes + layers * layer_bytes
    if len(room) == 1 or needed <= room[0]:
        return [0] * layers
    room[0] -= other_bytes
    homes = [device for device, left in enumerate(room) for _ in range(max(0, left) // layer_bytes)]
    if needed <= free_bytes[0] and len(homes) < layers:
        return [0] * layers  # tight, but nowhere else is room
    if len(homes) < layers or room[0] < 0:
        free_gib = ", ".join(f"{free / _GIB:.1f}" for free in free_bytes)
        raise UserError(
            f"a model of {needed / _GIB:.1f} GiB does not fit into {len(room)} devices with {free_gib} GiB free: take "
            "a smaller model or --dtype bfloat16"
        )
    return homes[:layers]


def choose_homes(device: torch.device, layer_bytes: int, layers: int, other_bytes: int) -> list[torch.device]:
    """The device of each layer: `device`, or from there on all CUDA devices that are free to be used."""
    if device.type != "cuda":
        return [device] * layers
    first = device.index or 0
    devices = [device, *(torch.device("cuda", i) for i in range(torch.cuda.device_count()) if i != first)]
    free = [torch.cuda.mem_get_info(device)[0]]
    if other_bytes + layers * layer_bytes > _FILLED * free[0]:  # to ask a device takes some of its memory
        free += [torch.cuda.mem_get_info(one)[0] for one in devices[1:]]
    return [devices[number] for number in place(layer_bytes, layers, other_bytes, free)]
