"""A real browser for the tests of pages: found here or skipped with a reason, and what is measured in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
SIZES = {"desk": 1280, "phone": 390}
CONTRAST = """
() => {
  const channels = (color) => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (color) => {
    const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = channels(color).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor;
      if (channels(color)[3] === 255) return color;
    }
    return getComputedStyle(document.body).backgroundColor;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("script")) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), `${element.tagName}.${element.className}: ${walker.currentNode.data.trim()}`]);
  }
  return found.sort((x, y) => x[0] - y[0]);
}
"""
ROOT = Path(__file__).parents[1]
AXE = "axe-core/axe.min.js"  # of npm's package


def missing(reason: str) -> NoReturn:
    """Skip the test, or fail it where a browser must be there."""
    if os.environ.get("ROOBENCH_REQUIRE_BROWSER"):
        pytest.fail(f"ROOBENCH_REQUIRE_BROWSER is set, but {reason}")
    pytest.skip(reason)


def launched() -> Iterator[Any]:
    """A browser, closed in the end."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        missing(f"no browser is installed (none of {', '.join(NAMES)})")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("the Python package playwright is not installed")
    with sync_playwright() as playwright:
        # As root, as in most containers, Chromium runs only without its sandbox; the page is our own.
        found = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


def axe_source() -> str:
    """The text of axe-core, from $ROOBENCH_AXE or where npm puts it; skips the test where it is missing."""
    given = os.environ.get("ROOBENCH_AXE")
    folders = [ROOT / "node_modules", ROOT / ".venv" / "node_modules", *_global_modules()]
    for path in [Path(given)] if given else [folder / AXE for folder in folders]:
        if path.is_file():
            return path.read_text(encoding="utf-8")
    pytest.skip("axe-core is not installed: `npm install --no-save axe-core`, or ROOBENCH_AXE=.../axe.min.js")


def _global_modules() -> list[Path]:
    npm = shutil.which("npm")
    if npm is None:
        return []
    done = subprocess.run([npm, "root", "--global"], capture_output=True, text=True, check=False)
    return [Path(done.stdout.strip())] if done.returncode == 0 else []


def faults(page: Any, axe: str) -> list[str]:
    """What axe-core finds in a page that is serious or worse: the rule, and the first element that breaks it."""
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    bad = [one for one in found if one["impact"] in ("serious", "critical")]
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in bad]
