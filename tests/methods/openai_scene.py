"""What the `openai` peer is tried on: a scripted server, and the peer that asks it."""

from __future__ import annotations

import pytest

from methods.openai.dialects import DIALECTS
from methods.openai.method import OpenAIServer, ServerConfig
from tests.servers import Scripted

NEVER: frozenset[int] = frozenset()
EOS = 258  # of the tiny tokenizer
BY_ID = [name for name in DIALECTS if name != "openai"]
SAID = [*b"It is a marzipan, not a pie.", EOS]


@pytest.fixture
def serve():
    """(api, answer, options) -> a scripted server, ended with the test."""
    running: list[Scripted] = []

    def start(api: str, answer=lambda prompt, limit: list(SAID), **options) -> Scripted:
        running.append(Scripted(api, answer, **options))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture
def peer(scene):
    """(server, knobs) -> the peer that asks it."""
    return lambda server, **knobs: OpenAIServer(scene[1], ServerConfig(url=server.url, **knobs), scene[2])
