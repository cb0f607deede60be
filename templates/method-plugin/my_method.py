"""A method in a repository of its own: drafts the newest token once more. Replace it by yours."""

from dataclasses import dataclass, field

from bench.drafting.method import SpeculativeMethod
from bench.drafting.sequence import Draft


@dataclass(frozen=True)
class MyConfig:
    """Knobs: --method my-method:length=3."""

    length: int = field(default=1, metadata={"help": "drafts in a step"})


class MyMethod(SpeculativeMethod):
    """See "Add a method" in Roobench's README for what it may do."""

    Config = MyConfig

    def propose(self, room: int) -> Draft:
        """At most `room` tokens to be verified after `self.context`."""
        return Draft(self.context[-1:] * min(self.config.length, room))
