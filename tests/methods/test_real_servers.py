"""The `openai` peer against llama.cpp's own server, where xllamacpp is installed: `pip install xllamacpp`.

Its answers are those of the same weights in transformers, and its own log has the same counts.
"""

from __future__ import annotations

import importlib.util
import re
import socket
import subprocess
import sys
import time
from urllib.request import urlopen

import pytest

from bench.drafting.loop import decode
from bench.models import loading
from bench.models.loading import Compute
from methods.openai.method import BY_IDS, OpenAIServer, ServerConfig

SERVE = """\
import sys, time
import xllamacpp as llama

params = llama.CommonParams()
params.model.path, params.port, params.hostnames = sys.argv[1], int(sys.argv[2]), ["127.0.0.1"]
params.n_ctx, params.n_parallel, params.verbosity = 512, 1, 3
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
if sys.argv[3] == "drafting":
    params.speculative.types = [llama.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
    params.speculative.ngram_simple.size_n, params.speculative.ngram_simple.size_m = 2, 8
server = llama.Server(params)
time.sleep(600)
"""
PROMPT = "Repeat this three times: one two three four five six seven."
LIMIT = 40

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed"),
]


@pytest.fixture(scope="module")
def loaded():
    """The default model."""
    model = loading.find("default", None, print)
    return loading.load(model, Compute(device="cpu"), 512, print)


@pytest.fixture(scope="module")
def serve(loaded, tmp_path_factory):
    """(kind) -> the URL of a server on the default model's GGUF, and its log."""
    from methods.llama_cpp import find_gguf

    gguf, folder, running = find_gguf(loaded.checkpoint, print), tmp_path_factory.mktemp("servers"), []

    def start(kind: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = folder / f"{kind}.log"
        with log.open("w") as out:
            command = [sys.executable, "-c", SERVE, str(gguf), str(port), kind]
            running.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT))
        for _ in range(600):
            try:
                with urlopen(f"http://127.0.0.1:{port}/health"):
                    return f"http://127.0.0.1:{port}/v1", log
            except OSError:
                assert running[-1].poll() is None, log.read_text()
                time.sleep(0.1)
        raise AssertionError(log.read_text())

    yield start
    for process in running:
        process.kill()
        process.wait()


def test_counts_are_those_of_the_servers_own_log_and_drafting_keeps_its_text(loaded, serve):
    prompt, answers = loaded.chat.prompt([], PROMPT), {}
    for kind in ("plain", "drafting"):
        url, log = serve(kind)
        peer = OpenAIServer(loaded.target, ServerConfig(url=url), loaded.checkpoint)
        assert peer.engine["name"] == "llama.cpp"
        answers[kind] = decode(peer, prompt, LIMIT, frozenset())
        assert len(answers[kind].token_ids) == LIMIT
        assert peer.notes["tokens"] == BY_IDS
        text = log.read_text()
        assert re.findall(r"prompt eval time = .*/ +(\d+) tokens", text) == [str(len(prompt))]
        assert re.findall(r"\| +eval time = .*/ +(\d+) tokens", text) == [str(LIMIT)]
        found = re.findall(r"draft acceptance = .*\( *(\d+) accepted / +(\d+) generated\)", text)
        told = answers[kind].accepted, answers[kind].drafted
        assert found == ([] if kind == "plain" else [tuple(map(str, told))])
    assert answers["plain"].token_ids == answers["drafting"].token_ids
    assert answers["plain"].decode_passes == LIMIT - 1
    assert answers["drafting"].decode_passes == LIMIT - 1 - answers["drafting"].accepted
    assert answers["drafting"].accepted > 0


def test_it_ends_at_the_models_end_token_and_streams_characters_of_several_tokens(loaded, serve):
    url, _ = serve("plain")
    peer = OpenAIServer(loaded.target, ServerConfig(url=url), loaded.checkpoint)
    answer = decode(peer, loaded.chat.prompt([], "Say hello, and nothing else."), 200, loaded.eos)
    assert answer.token_ids[-1] in loaded.eos
    emojis = loaded.chat.encode("🐳🦀🐙🐳🦀🐙🐳🦀🐙🐳🦀🐙🐳🦀🐙🐳🦀🐙")
    answer = decode(peer, emojis, 30, frozenset())
    assert len(answer.token_ids) == 30
    assert "🐙" in loaded.chat.tokenizer.decode(answer.token_ids)
