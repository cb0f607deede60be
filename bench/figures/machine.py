"""The machine that a run computed on, identified by what it is rather than by what its processor calls itself.

Virtual machines name very different processors alike ("AMD EPYC"), and counters repeat exactly only where sums are
rounded alike.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Annotated

from pydantic import Field

from bench.typed_json import Count, Seconds

_DIGEST_CHARS = 12


@dataclass(frozen=True, slots=True)
class Processor:
    """As the operating system describes it; empty or 0: unknown."""

    name: str = ""
    vendor: str = ""
    family: str = ""  # family, model and stepping on x86; architecture, part and revision on ARM
    model: str = ""
    stepping: str = ""
    architecture: str = ""  # x86_64, aarch64
    cores: Count = 0  # physical
    logical_cores: Count = 0
    caches_bytes: dict[str, Count] = field(default_factory=dict)  # "L1d", "L2", "L3": as the first core sees them
    instructions: list[str] = field(
        default_factory=list
    )  # of the sets that matter here: avx2, avx512f, amx_tile, neon, ...


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU that torch sees."""

    name: str
    memory_bytes: Count = 0
    driver: str | None = None
    cuda: str | None = None  # that torch was built for


@dataclass(frozen=True)
class Machine:
    """The machine and the threads of a run. `digest` is the same after a reboot or an update."""

    type: Annotated[str, Field(pattern="^(cpu|cuda)$")] = "cpu"  # what the run used
    name: str = ""  # of the GPU on CUDA, else of the processor
    threads: Count = 0  # of the run
    processor: Processor = field(default_factory=Processor)
    gpu: Gpu | None = None
    memory_bytes: Count = 0
    read_gb_per_s: Seconds = 0.0  # measured bandwidth of the memory that the run computed in, rounded; 0: not measured
    system: str = ""  # Linux, Darwin
    kernel: str = ""  # its release
    torch_instructions: str = ""  # the instruction set that torch's kernels take
    digest: str = ""  # computed from the rest, not read

    def __post_init__(self) -> None:
        lasting = {
            "type": self.type,
            "name": self.name,
            "processor": asdict(self.processor),
            "gpu": [self.gpu.name, self.gpu.memory_bytes] if self.gpu and self.type == "cuda" else None,
            "memory_gib": round(self.memory_bytes / 2**30),  # a kernel's own share of it varies
            "system": self.system,
        }
        digest = hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()
        object.__setattr__(self, "digest", digest[:_DIGEST_CHARS])

    @property
    def kind(self) -> str:
        """What workers that measure the same costs have in common."""
        return f"{self.digest}/{self.threads}"

    def __str__(self) -> str:
        """Name and digest, because different machines have one name."""
        return f"{self.name} ({self.digest})"

    def facts(self) -> dict[str, str]:
        """The known facts, for readers."""
        cpu, gpu, gpu_facts = self.processor, self.gpu, ""
        if gpu:
            gpu_facts = f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB, driver {gpu.driver}, CUDA {gpu.cuda}"
        found = {
            "machine": str(self),
            "processor": " ".join(filter(None, (cpu.name, cpu.family, cpu.model, cpu.stepping, cpu.architecture))),
            "cores": f"{cpu.cores} ({cpu.logical_cores} logical)" if cpu.cores else "",
            "threads": str(self.threads or ""),
            "caches": " ".join(f"{level} {size >> 10} KiB" for level, size in cpu.caches_bytes.items()),
            "instructions": " ".join(cpu.instructions),
            "torch's kernels for": self.torch_instructions,
            "GPU": gpu_facts,
            "memory": f"{self.memory_bytes / 2**30:.1f} GiB" if self.memory_bytes else "",
            "read at": f"{self.read_gb_per_s:g} GB/s" if self.read_gb_per_s else "",
            "system": f"{self.system} {self.kernel}".strip(),
        }
        return {what: value for what, value in found.items() if value}


@dataclass(frozen=True, slots=True)
class Worker:
    """A process, or several one after the other in the same place, that answered questions of a run."""

    place: Count  # its number, from 1
    host: str
    machine: Machine
    cores: list[Count] = field(default_factory=list)  # numbers of the processors that it was kept to
    gpu: str = ""  # as CUDA_VISIBLE_DEVICES names it

    def is_same(self, other: Worker) -> bool:
        """Return whether both are one place on one device."""
        return self._identity() == other._identity()

    def _identity(self) -> tuple[object, ...]:
        return self.place, self.host, self.machine.kind, self.cores, self.gpu

    @property
    def device(self) -> str:
        """What it computes on, for readers."""
        cores = f"core{'s' if len(self.cores) > 1 else ''} {', '.join(map(str, self.cores))}"
        return f"GPU {self.gpu}, {cores}" if self.gpu else cores
