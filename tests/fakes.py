"""Stand-ins for what a test should not download."""

from __future__ import annotations

from pathlib import Path

from bench.drafting.method import SpeculativeMethod
from bench.drafting.sequence import Draft, Sequence
from bench.models import packaged as packaged_model


def fake_convert(gguf: Path, out: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (out / name).write_text(f"made from {gguf.name}")


def fake_default(monkeypatch) -> list[Path]:
    """Put a few bytes in place of the packaged default's half gigabyte; the list fills with the fetches."""
    fetched = []

    def fetch(partial, log):
        fetched.append(partial)
        (partial / "x.gguf").write_bytes(b"gguf")
        return partial / "x.gguf"

    monkeypatch.setattr(packaged_model, "fetch_gguf", fetch)
    monkeypatch.setattr(packaged_model, "convert", fake_convert)
    return fetched


def leftovers(root: Path) -> list[str]:
    """Files below a cache folder, but for the locks."""
    return [path.name for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"]


class OneSequence(SpeculativeMethod):
    """A method that decodes one sequence at a time and may keep what it likes of it: for tests only."""

    sequence: Sequence

    @property
    def context(self) -> list[int]:
        return self.sequence.context

    def open(self, sequence, prompt):
        self.sequence = sequence

    def propose(self, sequences, budgets):
        (self.sequence,), (budget,) = sequences, budgets
        return [self.draft(budget)]

    def draft(self, room: int) -> Draft:
        raise NotImplementedError

    def observe(self, sequences, outcomes):
        (outcome,) = outcomes
        self.observed(outcome)

    def observed(self, outcome) -> None:
        """A test puts its own here."""
