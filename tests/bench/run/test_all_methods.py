"""`--method all`: a method whose weights or corpus for the model are not there is left out, and named."""

from __future__ import annotations

import pytest

import methods
from bench import config
from bench.errors import UserError
from bench.run import plan


def settings(*asked: str):
    return config.from_flags({"method": asked, "peer": (config.NO_PEER,), "model": "someone/unheard-of"}, "laptop")


def test_methods_without_weights_for_the_model_are_left_out_and_named():
    _, chosen = plan.check(settings(methods.ALL))
    labels = [variant.label for variant in chosen]
    assert labels[0] == methods.BASELINE
    assert {"pld", "recycling"} <= set(labels)
    drafting = {name for name in methods.built_in() if not methods.is_peer(name)}
    absent = drafting - set(labels)
    assert {"kangaroo", "medusa", "eagle", "eagle3"} <= absent
    told = plan.left_out(settings(methods.ALL))
    assert len(told) == len(absent)
    for name in ("kangaroo", "eagle", "eagle3"):
        (line,) = [line for line in told if f"no weights of {name} come" in line]
        assert line.startswith("left out of all: ")
    assert plan.make_plan(settings(methods.ALL)).warnings == told


@pytest.mark.parametrize("name", ["kangaroo", "eagle"])
def test_a_method_that_is_named_is_refused(name):
    for asked in ((name,), (methods.ALL, f"{name}:gamma=2")):
        with pytest.raises(UserError, match=f"no weights of {name} come"):
            plan.check(settings(*asked))
    assert plan.left_out(settings(name)) == ()
