"""A method in a repository of its own: drafts the newest token once more. Replace it with yours."""

from dataclasses import dataclass, field

from bench.drafting.method import Draft, TextMethod


@dataclass(frozen=True)
class MyConfig:
    """Knobs, as in --method my-method:length=3."""

    length: int = field(default=1, metadata={"help": "drafts in a step"})


class MyMethod(TextMethod):
    """Replace it; docs/adding-a-method.md of Roobench says what a method can do."""

    Config = MyConfig

    def propose_text(self, context: list[int], budget: int) -> Draft:
        """Return at most `budget` tokens in a row, to verify after `context`."""
        return Draft(context[-1:] * min(self.config.length, budget))
