"""The `openai` peer against a scripted server: dialects, counts and times."""

from __future__ import annotations

import pytest

from bench.drafting.loop import decode
from bench.drafting.sampling import Sampler
from bench.errors import UserError
from methods.openai.dialects import DIALECTS, Piece, Told
from methods.openai.method import BY_IDS, BY_TEXT, _alike, _Stream
from tests.methods.openai_scene import BY_ID, EOS, NEVER, SAID
from tests.methods.openai_scene import peer as peer
from tests.methods.openai_scene import serve as serve
from tests.methods.peer_scene import scene as scene
from tests.servers import DRAFTS, PATHS


@pytest.fixture
def spoken(tiny_tokenizer):
    """What a server says that gives text, in the tokenizer's ids, which are no letters' numbers."""
    return [*tiny_tokenizer.encode("".join(map(chr, SAID[:-1]))), EOS]


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


@pytest.mark.parametrize("parts", ["", "stream_output", "incremental_streaming_output"])
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


def test_the_second_answer_has_the_time_that_the_first_one_took(serve, peer, random_ids):
    """It comes all at once: no sign of life for longer than any event of a stream takes."""
    asking = peer(serve("llama-server", lost=frozenset({3, 4}), pace_s=0.06), timeout=0.5)
    assert decode(asking, random_ids(5), 12, frozenset({EOS})).token_ids == SAID[:12]


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


def test_a_server_that_takes_text_alone_and_fails_at_it_is_told_of_with_that_failure(serve, peer):
    with pytest.raises(UserError, match=r"status 500: .*CUDA out of memory"):
        peer(serve("openai", text_only=True, fault="500"))


def test_text_may_hold_every_character_that_ends_lines_elsewhere(serve, peer, tiny_tokenizer):
    """As JSON may have them unescaped; the stream's pieces end within characters."""
    text = "a\u2028b\u2029c\x85d\x0b\x0ce\x1c\U0001f600\u00e4."
    server = serve("openai", lambda prompt, limit: [*map(ord, text), EOS], groups=(4,), plain=True)
    assert decode(peer(server), [1, 2], 90, frozenset({EOS})).token_ids == [*tiny_tokenizer.encode(text), EOS]


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
    stream = _Stream(10.0)
    for at_s, piece in (
        (10.1, Piece()),  # a role, a keep-alive
        (10.5, Piece([1])),
        (10.75, Piece([2, 3])),
        (11.0, Piece([4])),
        (11.5, Piece(finish="length")),  # the counts, after the last token
    ):
        stream.take(at_s, piece)
    answer = stream.answer([1, 2, 3, 4], 4, Told(passes=2, drafted=8, accepted=1))
    assert (answer.prefill_s, answer.decode_s, answer.first_tokens) == (0.5, 0.5, 1)
    assert (answer.decode_passes, answer.drafted, answer.accepted) == (2, 8, 1)


@pytest.mark.parametrize(("first", "tokens"), [([1], 1), ([1, 9, 2], 3), ([1, 9, 3], 2), ([7], 0), ([], 0)])
def test_tokens_of_the_first_text_are_those_of_the_whole_that_it_holds(first, tokens):
    assert _alike(first, [1, 9, 2, 4]) == tokens


def test_all_tokens_of_the_first_event_count_as_the_prefills(serve, peer, spoken):
    for api, said in (("openai", spoken), ("vllm", SAID), ("sglang", SAID)):
        answer = decode(peer(serve(api, first=8)), [1, 2], 50, frozenset({EOS}))
        assert (answer.token_ids, answer.first_tokens) == (said, 8)
        assert answer.decode_s > 0
        assert answer.decode_passes == (None if api == "openai" else len(said) - 8)
    drafting = decode(peer(serve("sglang", first=8, groups=(3, 2))), [1, 2], 50, frozenset({EOS}))
    assert (drafting.decode_passes, drafting.drafted, drafting.accepted) == (None, None, None)


@pytest.mark.parametrize("api", ["openai", "vllm", "sglang"])
def test_an_answer_in_a_single_event_has_no_decode_time(api, serve, peer):
    asking = peer(serve(api, first=99))
    answer = decode(asking, [1, 2], 50, frozenset({EOS}))
    assert answer.first_tokens == len(answer.token_ids) == len(SAID)
    assert answer.decode_s == 0
    assert answer.decode_passes in (None, 0)
    assert asking.notes["times"].startswith("some answers came in one event")


def test_each_dialect_has_a_path_of_its_own_or_openais():
    assert {name: kind.path for name, kind in DIALECTS.items()} == {
        name: path.removeprefix("/v1") for name, path in PATHS.items()
    }
