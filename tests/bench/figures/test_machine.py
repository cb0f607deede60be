"""What identifies a machine, and what does not."""

from __future__ import annotations

import dataclasses
import json

import pytest

from bench.figures.machine import Gpu, Machine, Processor
from bench.typed_json import decode_value

GPU = Gpu("a GPU", 80 << 30, "535", "12.4")
CPU = Processor("AMD EPYC", "AuthenticAMD", "26", "2", "1", "x86_64", 2, 2, {"L3": 32 << 20}, ["avx2"])
MACHINE = Machine("cpu", "AMD EPYC", 2, CPU, GPU, 25_276_510_208, 12.0, "Linux", "6.18", "AVX2")


def changed(**processor) -> Machine:
    return dataclasses.replace(MACHINE, processor=dataclasses.replace(MACHINE.processor, **processor))


@pytest.mark.parametrize(
    "other",
    [
        changed(family="25"),
        changed(model="1"),
        changed(stepping="2"),
        changed(cores=4),
        changed(caches_bytes={"L3": 64 << 20}),
        changed(instructions=["avx2", "avx512f"]),
        dataclasses.replace(MACHINE, memory_bytes=2 * MACHINE.memory_bytes),
        dataclasses.replace(MACHINE, type="cuda"),
        dataclasses.replace(MACHINE, system="Darwin"),
    ],
)
def test_machines_of_one_name_are_told_apart(other):
    assert other.name == MACHINE.name
    assert other.digest != MACHINE.digest
    assert str(other) != str(MACHINE)


def test_what_varies_from_boot_to_boot_or_run_to_run_is_not_in_the_digest():
    other = dataclasses.replace(
        MACHINE, threads=1, memory_bytes=MACHINE.memory_bytes + 4096, read_gb_per_s=9.5, kernel="6.19",
        torch_instructions="DEFAULT", gpu=None,
    )  # fmt: skip
    assert other.digest == MACHINE.digest


def test_a_gpu_is_part_of_it_where_the_run_computed_there():
    one = dataclasses.replace(MACHINE, type="cuda", name=GPU.name)
    assert dataclasses.replace(one, gpu=dataclasses.replace(GPU, memory_bytes=40 << 30)).digest != one.digest
    assert dataclasses.replace(one, gpu=dataclasses.replace(GPU, driver="550")).digest == one.digest


def test_a_record_gives_the_same_machine_back_and_an_edited_one_another():
    stored = json.loads(json.dumps(dataclasses.asdict(MACHINE)))
    assert stored["digest"] == MACHINE.digest
    assert decode_value(Machine, stored) == MACHINE
    stored["processor"]["model"] = "17"
    assert decode_value(Machine, stored).digest == changed(model="17").digest


def test_facts_leave_out_what_is_not_known():
    assert MACHINE.facts()["caches"] == "L3 32768 KiB"
    assert MACHINE.facts()["GPU"] == "a GPU, 80 GiB, driver 535, CUDA 12.4"
    assert set(Machine(name="x").facts()) == {"machine"}
