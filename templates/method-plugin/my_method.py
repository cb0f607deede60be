"""A method in a repository of its own: drafts the newest token once more. Replace it by yours."""

from dataclasses import dataclass, field

from bench.drafting.method import Draft, TextMethod


@dataclass(frozen=True)
class MyConfig:
    """Knobs: --method my-method:length=3."""

    length: int = field(default=1, metadata={"help": "drafts in a step"})


class MyMethod(TextMethod):
    """See "Add a method" in Roobench's README for what it may do."""

    Config = MyConfig

    def propose_text(self, context: list[int], budget: int) -> Draft:
        """At most `budget` tokens in a row, to be verified after `context`."""
        return Draft(context[-1:] * min(self.config.length, budget))
