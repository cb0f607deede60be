"""How the folders of this project are installed: in one package, so that no name of theirs meets one of a user's.

`bench` and `methods` become folders of `roobench`, from which `roobench.__main__` imports them by their own names. All
else about the package is in pyproject.toml.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        "roobench",
        *(f"roobench.{name}" for name in find_packages(include=["bench*", "methods*"])),
        "roobench.results.published",
    ],
    package_dir={"roobench": "roobench"} | {f"roobench.{name}": name for name in ("bench", "methods", "results")},
)
