"""The `openai` peer against a scripted server that fails, and that its key is shown nowhere."""

from __future__ import annotations

import pytest

import methods
from bench.drafting.loop import decode
from bench.errors import UserError
from methods.openai.dialects import DIALECTS
from methods.openai.method import OpenAIServer, ServerConfig
from tests.methods.openai_scene import BY_ID, EOS, NEVER, SAID
from tests.methods.openai_scene import peer as peer
from tests.methods.openai_scene import serve as serve
from tests.methods.peer_scene import scene as scene

# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", BY_ID)
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("500", r"answers with status 500: .*CUDA out of memory\..*2\.00 GiB"),
        ("cut", r"broke its answer off \(RemoteProtocolError"),
        ("silent", r"sent nothing for 0\.3 s: is it overloaded\? timeout= allows it more"),
        ("inside", r"ended its answer with an error: .*engine died"),
        ("garbage", r"answers with something else than JSON \(\{tokens\)"),
        ("unfinished", r"cut its answer off after 2 events without saying that it is complete"),
    ],
)
def test_faults_within_an_answer_are_told_and_nothing_is_asked_twice(api, fault, told, serve, peer, random_ids):
    server = serve(api, fault=fault)
    asking = peer(server, timeout=0.3)
    with pytest.raises(UserError, match=told):
        decode(asking, random_ids(5), 20, frozenset({EOS}))
    assert len(server.asked) == 1
    server.fault = ""  # and it goes on
    assert decode(asking, random_ids(5), 5, frozenset({EOS})).token_ids == SAID[:5]


def test_a_connection_that_the_server_closed_meanwhile_costs_no_answer(serve, peer):
    """As llama.cpp's server does with one that was idle for seconds, perhaps just as the next request comes."""
    server = serve("llama-server")
    asking = peer(server)
    for _ in range(3):
        assert decode(asking, [1, 2], 4, frozenset({EOS})).token_ids == SAID[:4]
        server.hang_up = True  # at the next request


def test_no_server_another_server_and_another_model_are_told(serve, peer):
    server = serve("vllm", models=["tiny", "tall"])
    with pytest.raises(UserError, match=r"serves 2 models \(tiny, tall\): choose one with model="):
        peer(server)
    with pytest.raises(UserError, match=r"has no model 'tinny', did you mean 'tiny'\?; it serves: tiny, tall"):
        peer(server, model="tinny")
    assert peer(server, model="tall").dialect.model == "tall"
    with pytest.raises(UserError, match=r"serves another model: it has 300 tokens, tiny has 272"):
        peer(serve("llama-server", vocab=300))
    with pytest.raises(UserError, match=r"something else than JSON \(<html>.*with its /v1\?"):
        peer(serve("openai", fault="html"))
    with pytest.raises(UserError, match=r"answers with status 404: .*with its /v1\?"):
        OpenAIServer(*_at(peer(server, model="tall"), server.root))
    server.close()
    with pytest.raises(UserError, match=r"no server answers at .*/v1/models .*: start it, or correct url="):
        peer(server)


def _at(peer, url):
    return peer.target, ServerConfig(url=url), peer.checkpoint


def test_tokens_of_another_model_are_told(serve, peer):
    with pytest.raises(UserError, match="serves another model: tiny has no token 272"):
        decode(peer(serve("vllm", lambda prompt, limit: [1, 272])), [1], 5, NEVER)


def test_a_stream_of_parts_that_the_server_does_not_tell_of_is_not_taken_for_the_answer(serve, peer):
    asking = peer(serve("sglang", parts="of a name that is not known"))
    with pytest.raises(UserError, match="counts 5 tokens in an answer of which 1 came: its answers cannot be trusted"):
        decode(asking, [1], 5, NEVER)


@pytest.mark.parametrize("api", DIALECTS)
def test_an_empty_answer_is_told(api, serve, peer):
    server = serve(api, lambda prompt, limit: [])
    with pytest.raises(UserError, match=r"cut its answer off|an empty answer"):
        decode(peer(server), [1], 5, NEVER)


# --- keys ------------------------------------------------------------------------------------------------------------


def test_the_key_comes_from_the_environment_and_no_error_repeats_it(serve, peer, monkeypatch):
    server = serve("vllm", key="sk-right")
    monkeypatch.setenv("VLLM_KEY", "sk-right")
    assert decode(peer(server, key_env="VLLM_KEY"), [1], 5, NEVER).token_ids == SAID[:5]
    assert server.headers[-1]["Authorization"] == "Bearer sk-right"
    monkeypatch.setenv("VLLM_KEY", "sk-wrong")
    with pytest.raises(UserError, match=r"status 401: .*Incorrect API key provided: '\*\*\*'.*key_env=") as raised:
        decode(peer(server, key_env="VLLM_KEY"), [1], 5, NEVER)
    assert "sk-wrong" not in str(raised.value)
    with pytest.raises(UserError, match="status 401"):
        decode(peer(server), [1], 5, NEVER)
    monkeypatch.delenv("VLLM_KEY")
    with pytest.raises(UserError, match="key_env=VLLM_KEY: there is no such environment variable"):
        peer(server, key_env="VLLM_KEY")


def test_a_key_may_come_with_the_end_of_its_line(serve, peer, monkeypatch):
    server = serve("vllm", key="sk-right")
    monkeypatch.setenv("VLLM_KEY", " sk-right\r\n")
    assert decode(peer(server, key_env="VLLM_KEY"), [1], 5, NEVER).token_ids == SAID[:5]
    assert server.headers[-1]["Authorization"] == "Bearer sk-right"


@pytest.mark.parametrize(
    ("key", "told"),
    [
        (" \n", "there is no such environment variable, or it is empty"),
        ("sk-one\nsk-two", "has characters other than printable ASCII"),
        ("sk-\u00fc", "has characters other than printable ASCII"),
        ("sk-\x7f", "has characters other than printable ASCII"),
    ],
)
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key, told, serve, peer, monkeypatch):
    monkeypatch.setenv("VLLM_KEY", key)
    with pytest.raises(UserError, match=f"key_env=VLLM_KEY: .*{told}") as raised:
        peer(serve("vllm"), key_env="VLLM_KEY")
    assert "sk-" not in str(raised.value)


def test_the_http_librarys_words_on_a_request_of_ours_are_not_shown(serve, peer):
    asking = peer(serve("vllm"))
    asking.server._client.headers["Authorization"] = "Bearer sk-secret\n"
    with pytest.raises(UserError, match="the HTTP library refuses the request") as raised:
        decode(asking, [1], 5, NEVER)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ("url=http://me:sk-secret@host/v1", "must not hold credentials"),
        ("url=https://host/v1?api_key=sk-secret", "must not hold credentials or a query"),
        ("url=http://host/v1,key_env=sk-secret", "takes the name of an environment variable, and not the key itself"),
        ("url=http://me:sk-secret@host/v1,timeout=0", "must not hold credentials"),
        ("url=http://me:sk-secret@host/v1,modl=x", "has no knob 'modl=x', did you mean 'model'?"),
        ("url=http://me:sk,secret@host/v1", "has no knob"),
    ],
)
@pytest.mark.parametrize("before", ["", "pld+"])
def test_secrets_on_the_command_line_are_refused_and_not_repeated(before, knobs, told, capsys):
    from bench.cli import main

    assert main(["--method", f"{before}openai:{knobs}"]) == 2
    printed = capsys.readouterr().err
    assert told in printed
    assert "secret" not in printed


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ("", "url= is missing: openai:url=http://localhost:8000/v1"),
        ("url=localhost:8000", "url=localhost:8000 is no server's URL: give one like http://localhost:8000/v1"),
        ("url=http://host:port/v1", "url=http://host:port/v1 is no server's URL"),
        (
            "url=http://host/v1,api=ollama",
            "api=ollama is unknown: give one of auto, openai, vllm, sglang",
        ),
        ("url=http://host/v1,timeout=0", "timeout=0.0 must be above 0"),
        ("url=http://host/v1,audit=true,baseline=a", "leave audit= out"),
    ],
)
def test_wrong_knobs_are_told(knobs, told):
    with pytest.raises(UserError) as raised:
        methods.parse(f"openai:{knobs}").check_files("tiny")
    assert told in str(raised.value)
