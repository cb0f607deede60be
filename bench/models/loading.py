"""Loads a model onto a device: which device, in which number format, with how many threads."""

from __future__ import annotations

import shutil
import subprocess

import torch

from bench.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device called `name`; auto: CUDA where torch can use it, else CPU.

    Raises:
        UserError: no such device, or torch cannot use it.

    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}: give cpu, cuda, cuda:N or auto") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported: give cpu, cuda, cuda:N or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(f"device {name!r} is not there: this torch ({torch.__version__}) sees {found} CUDA devices")
    return device


def unused_gpu_warning(device: torch.device) -> str | None:
    """A sentence if this machine has an NVIDIA GPU that torch cannot use while the run is on the CPU."""
    if device.type != "cpu" or torch.cuda.is_available() or not has_nvidia_gpu():
        return None
    return (
        f"this machine has an NVIDIA GPU, but this torch ({torch.__version__}) cannot use it: the run is on the CPU. "
        "Install a CUDA build of torch that fits the driver (nvidia-smi shows it)"
    )


def has_nvidia_gpu() -> bool:
    """Whether the driver's own tool lists a GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout
