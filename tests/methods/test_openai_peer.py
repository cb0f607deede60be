"""The `openai` peer against a scripted server: dialects, counts, faults, and that its key is shown nowhere."""

from __future__ import annotations

import pytest

import methods
from bench.drafting.loop import decode
from bench.drafting.sampling import Sampler
from bench.errors import UserError
from methods.openai.dialects import DIALECTS, OpenAI, Piece
from methods.openai.method import BY_IDS, BY_TEXT, OpenAIServer, ServerConfig, _Stream
from tests.methods.peer_scene import scene as scene
from tests.servers import DRAFTS, PATHS, Scripted

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
def spoken(tiny_tokenizer):
    """What a server says that gives text, in the tokenizer's ids, which are no letters' numbers."""
    return [*tiny_tokenizer.encode("".join(map(chr, SAID[:-1]))), EOS]


@pytest.fixture
def peer(scene):
    """(server, knobs) -> the peer that asks it."""
    return lambda server, **knobs: OpenAIServer(scene[1], ServerConfig(url=server.url, **knobs), scene[2])


@pytest.fixture
def model_answer(scene, hf_greedy):
    """What transformers answers: an independent reference for ids that go over the wire."""
    return lambda prompt, limit: hf_greedy(scene[0], prompt, limit)


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [(1,), (3, 1, 2)], ids=["plain", "drafting"])
@pytest.mark.parametrize("api", BY_ID)
def test_ids_go_both_ways_and_the_answer_is_what_the_model_says(
    api, groups, serve, peer, scene, model_answer, hf_greedy, random_ids
):
    server = serve(api, model_answer, groups=groups)
    asking = peer(server)
    for prompt, limit in ((random_ids(12, seed=1), 24), (random_ids(30, seed=2), 2), (random_ids(1, seed=3), 1)):
        answer = decode(asking, prompt, limit, NEVER)
        assert answer.token_ids == hf_greedy(scene[0], prompt, limit)
        body = server.asked[-1]
        assert body.get("input_ids") == prompt if api == "sglang" else body["prompt"] == prompt
        assert answer.prefill_s > 0
        assert answer.first_tokens == 1
    assert asking.notes["tokens"] == BY_IDS


@pytest.mark.parametrize("api", BY_ID)
def test_an_answer_ends_with_its_end_token_or_at_the_limit(api, serve, peer, random_ids):
    asking = peer(serve(api))
    answer = decode(asking, random_ids(5), 50, frozenset({EOS, 257}))
    assert answer.token_ids == SAID
    assert answer.finish(frozenset({EOS})) == "eos"
    assert decode(asking, random_ids(5), 7, frozenset({EOS})).token_ids == SAID[:7]


@pytest.mark.parametrize("api", BY_ID)
def test_passes_and_drafts_are_those_that_the_server_counts(api, serve, peer, random_ids):
    asking = peer(serve(api, groups=(3, 1, 2)))
    answer = decode(asking, random_ids(5), 14, frozenset({EOS}))  # 1 of the prefill, then 3 1 2 3 1 2 1
    assert (answer.decode_passes, answer.drafted, answer.accepted) == (7, 7 * DRAFTS, 6)
    plain = decode(peer(serve(api)), random_ids(5), 14, frozenset({EOS}))
    assert (plain.decode_passes, plain.drafted) == (13, None)


def test_an_answer_that_is_cut_has_the_passes_of_what_was_kept_or_none(serve, peer, random_ids):
    """llama.cpp's server stops at its own end tokens alone; where it drafts, its passes are those of the whole."""
    eos = frozenset({EOS, ord("m")})
    plain = decode(peer(serve("llama-server")), random_ids(5), 50, eos)
    assert (len(plain.token_ids), plain.decode_passes) == (9, 8)
    drafting = decode(peer(serve("llama-server", groups=(3, 1, 2))), random_ids(5), 50, eos)
    assert (drafting.decode_passes, drafting.drafted, drafting.accepted) == (None, None, None)


@pytest.mark.parametrize("parts", [False, True])
def test_sglang_may_repeat_the_answer_in_every_event_or_not(parts, serve, peer, random_ids):
    """A token may come twice in a row, so that the two cannot be told apart by what comes."""
    said = [7, 7, 7, 8, 8, 9]
    asking = peer(serve("sglang", lambda prompt, limit: said, parts=parts))
    assert decode(asking, random_ids(5), 6, NEVER).token_ids == said


def test_ids_that_llama_servers_stream_leaves_out_are_asked_for(serve, peer, random_ids):
    """It sends no event for a token that ends within a character."""
    server = serve("llama-server", lost=frozenset({3, 4}))
    assert decode(peer(server), random_ids(5), 12, frozenset({EOS})).token_ids == SAID[:12]
    assert [body["stream"] for body in server.asked] == [True, False]
    answers = iter([SAID, SAID[::-1]])
    fickle = serve("llama-server", lambda prompt, limit: list(next(answers)), lost=frozenset({3}))
    with pytest.raises(UserError, match="gives two answers to one request"):
        decode(peer(fickle), random_ids(5), 12, NEVER)


def test_vllm_that_gives_no_ids_is_counted_by_text(serve, peer, spoken, random_ids):
    server = serve("openai")
    asking = peer(server, api="vllm")
    assert decode(asking, random_ids(5), 50, frozenset({EOS})).token_ids == spoken
    assert asking.notes["tokens"] == BY_TEXT


# --- servers that only speak OpenAI's API ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "as_text", "penalised"),
    [({}, False, True), ({"text_only": True}, True, True), ({"strict": True}, False, False)],
)
def test_the_form_of_prompts_is_found_out_once(options, as_text, penalised, serve, peer, spoken, tiny_tokenizer):
    server = serve("openai", **options)
    asking = peer(server)
    tried = len(server.asked)
    prompt = [257, *tiny_tokenizer.encode("user\nHi"), EOS]
    answer = decode(asking, prompt, 50, frozenset({EOS}))
    assert answer.token_ids == spoken  # its text, and the end token that it does not send
    assert len(server.asked) == tried + 1
    body = server.asked[-1]
    assert body["prompt"] == ("<|im_start|>user\nHi<|im_end|>" if as_text else prompt)
    assert body["temperature"] == 0
    assert body.get("repeat_penalty") == (1.0 if penalised else None)
    assert asking.notes["tokens"] == BY_TEXT
    assert answer.decode_passes is None


def test_a_server_that_reads_other_prompts_is_reported(serve, peer):
    assert peer(serve("openai", adds=1, text_only=True)).notes["prompts"].startswith("the server reads a prompt of ")
    asking = peer(serve("vllm", adds=1))
    decode(asking, [1, 2, 3], 5, frozenset({EOS}))
    assert asking.notes["prompts"] == "the server read a prompt of 3 tokens as 4"


@pytest.mark.parametrize("api", ["vllm", "llama-server"])
def test_a_prompt_that_was_cached_is_reported(api, serve, peer):
    asking = peer(serve(api, cached=2))
    decode(asking, [1, 2, 3], 5, frozenset({EOS}))
    assert "2 of a prompt's 3 tokens in its cache" in asking.notes["prefix_cache"]


def test_every_request_keeps_earlier_prompts_out(serve, peer, random_ids):
    server = serve("vllm")
    asking = peer(server)
    for _ in range(2):
        decode(asking, random_ids(5), 3, NEVER)
    salts = [body["cache_salt"] for body in server.asked]
    assert len(set(salts)) == 2
    llama = serve("llama-server")
    decode(peer(llama), random_ids(5), 3, NEVER)
    assert llama.asked[-1]["cache_prompt"] is False


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", DIALECTS)
def test_greedy_and_sampled_requests_ask_for_what_the_run_asks_for(api, serve, peer):
    server = serve(api)
    asking = peer(server)
    decode(asking, [1, 2], 5, frozenset({EOS}))
    greedy = server.asked[-1].get("sampling_params", server.asked[-1])
    assert greedy["temperature"] == 0
    sampler = Sampler(0.7, 0.9, 20)
    sampler.seed("question")
    decode(asking, [1, 2], 5, frozenset({EOS}), sampler)
    drawn = server.asked[-1].get("sampling_params", server.asked[-1])
    assert (drawn["temperature"], drawn["top_p"], drawn["top_k"]) == (0.7, 0.9, 20)
    if api != "sglang":
        assert drawn["seed"] == sampler.number % 2**31


def test_a_server_without_top_k_is_told_apart(serve, peer, spoken):
    asking = peer(serve("openai", strict=True))
    with pytest.raises(UserError, match="takes no top_k: leave --top-k out"):
        decode(asking, [1, 2], 5, frozenset({EOS}), Sampler(0.7, 0.9, 20))
    assert decode(asking, [1, 2], 5, frozenset({EOS}), Sampler(0.7, 0.9)).token_ids == spoken[:5]


@pytest.mark.parametrize("api", BY_ID)
def test_end_tokens_are_switched_off_where_none_ends_an_answer(api, serve, peer):
    server = serve(api, lambda prompt, limit: [1, EOS, 2, 3])
    assert decode(peer(server), [1, 2], 4, NEVER).token_ids == [1, EOS, 2, 3]
    assert decode(peer(server), [1, 2], 4, frozenset({EOS})).token_ids == [1, EOS]


@pytest.mark.parametrize(
    ("api", "engine"),
    [
        ("vllm", {"name": "vLLM", "version": "0.11.0", "flags": ""}),
        ("sglang", {"name": "SGLang", "version": "0.5.4", "flags": "speculative_algorithm EAGLE"}),
        ("llama-server", {"name": "llama.cpp", "version": "b11549-abc", "flags": "model tiny.gguf"}),
        ("openai", {"name": "an engine that does not tell its name", "version": "", "flags": ""}),
    ],
)
def test_the_engine_tells_its_name_version_and_flags_and_the_user_what_it_does_not(api, engine, serve, peer):
    server = serve(api, groups=(2,))
    assert peer(server).engine == engine
    named = peer(server, engine="TensorRT-LLM 1.1", flags="--max_batch_size 1").engine
    assert (named["name"], named["flags"]) == ("TensorRT-LLM 1.1", "--max_batch_size 1")


def test_it_is_audited_against_vanilla_only_where_the_user_says_so(serve, peer):
    server = serve("vllm")
    assert not peer(server).lossless
    assert peer(server, audit=True).lossless


# --- times -----------------------------------------------------------------------------------------------------------


def test_times_are_from_the_request_to_the_first_token_and_from_there_to_the_last():
    stream, told = _Stream(10.0), OpenAI.__new__(OpenAI)
    told.told = type("T", (), {"passes": 2, "drafted": 8, "accepted": 1})()
    for at_s, piece in (
        (10.1, Piece()),  # a role, a keep-alive
        (10.5, Piece([1])),
        (10.75, Piece([2, 3])),
        (11.0, Piece([4])),
        (11.5, Piece(finish="length")),  # the counts, after the last token
    ):
        stream.take(at_s, piece)
    answer = stream.answer([1, 2, 3, 4], told)
    assert (answer.prefill_s, answer.decode_s, answer.first_tokens) == (0.5, 0.5, 1)
    assert (answer.decode_passes, answer.drafted, answer.accepted) == (2, 8, 1)


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


def test_each_dialect_has_a_path_of_its_own_or_openais():
    assert {name: kind.path for name, kind in DIALECTS.items()} == {
        name: path.removeprefix("/v1") for name, path in PATHS.items()
    }
