"""What a worker on another machine needs of the cache: found there, or shipped."""

from __future__ import annotations

import io
import tarfile
import tempfile
from pathlib import Path

from bench.config import RunConfig
from bench.files import cache_root, writing
from bench.models.loading import Model
from bench.questions import fetch_official


def needed(config: RunConfig, model: Model) -> list[str]:
    """The entries of the cache, by their paths in it, that hold the model and the questions of a run."""
    root = cache_root().resolve()
    paths = [model.checkpoint.folder.resolve()]
    if config.questions == "official":
        paths.append(fetch_official().resolve())
    inside = (path.relative_to(root) for path in paths if path.is_relative_to(root))
    return ["/".join(path.parts[:2]) for path in inside]  # a folder of its own, or a file


def packed(entry: str) -> bytes:
    """An entry of the cache as a tar archive; links within it stay links."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(cache_root() / entry, arcname=Path(entry).name)
    return archive.getvalue()


def is_there(entry: str) -> bool:
    """Return whether this machine has an entry in its own cache."""
    return (cache_root() / entry).exists()


def unpack(entry: str, archive: bytes) -> None:
    """Put an entry into the cache, as a whole: another worker may do it at once."""
    place = cache_root() / entry
    with writing(cache_root(), len(archive)):
        place.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=place.parent, prefix=".partial-") as partial,
            tarfile.open(fileobj=io.BytesIO(archive)) as tar,
        ):
            tar.extractall(partial, filter="data")
            if not place.exists():
                (Path(partial) / place.name).rename(place)
