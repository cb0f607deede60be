"""A site for the tests of its pages: made once, without plots."""

from __future__ import annotations

import pytest

from bench.cli import main
from tests import site_runs


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of a site over all the made-up runs."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.report.figures.write_figures", lambda summary, folder: [])
        assert main(["publish", str(site_runs.write_all(folder / "runs")), "--out", str(folder / "out")]) == 0
    return folder / "out"
