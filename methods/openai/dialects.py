"""How servers are asked for tokens, and what they tell: OpenAI's completions API and three engines' own forms.

Field names are those of vLLM 0.10 to 0.18 (`/v1/completions` with `return_token_ids`, counters at `/metrics`), SGLang
0.5 (`/generate`) and llama.cpp's server b4000 to b11549 (`/completion`).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.errors import UserError
from methods.openai.server import Server

if TYPE_CHECKING:
    from bench.drafting.sampling import Sampler

_SEEDS = 2**31  # of servers
_PATIENCE = 2  # times the streamed answer's duration that the same one may take unstreamed
_TRIED = 2  # tokens, of an answer that shows how a server takes prompts


@dataclass
class Told:
    """What a server tells of one answer besides its tokens. None: it does not tell."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None  # of the prompt, from earlier requests
    tokens: int | None = None  # of the answer, EOS included
    passes: int | None = None  # forward passes after the prefill
    drafted: int | None = None
    accepted: int | None = None

    def leave(self, first: int, kept: int, came: int) -> None:
        """Count only what came after the `first` tokens, up to `kept` of all: known where each pass gave one token."""
        if first > 1 or kept < came:
            self.passes = kept - first if self.passes == came - 1 else None
            self.drafted = self.accepted = None


@dataclass
class Piece:
    """One event's part of an answer."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: str = ""  # "stop", "length", or another reason
    stopped_at: int | None = None  # the token that ended the answer, where it is not among `ids`


class OpenAI:
    """OpenAI's completions API: prompts as token ids or text, answers as text."""

    name = "openai"
    engine = ""  # such a server does not tell what it is
    path = "/completions"

    def __init__(self, server: Server, model: str):
        self.server, self.model = server, model
        self.prompt_as_text = False
        self._extra: dict[str, Any] = {}
        self.told = Told()

    @property
    def url(self) -> str:
        """Where answers are asked for."""
        return self.server.url + self.path

    def settle(self, ids: Sequence[int], text: str) -> str:
        """Find out in which form the server takes prompts; returns what the report must say of it.

        `ids` and `text` are one prompt in two forms.

        Raises:
            UserError: it takes neither.

        """
        failed: UserError | None = None
        for extra in ({"repeat_penalty": 1.0, "top_k": 0, "min_p": 0.0}, {}):  # llama-cpp-python penalises by default
            for as_text in (False, True):
                self._extra, self.prompt_as_text = extra, as_text
                body = self.body(text if as_text else ids, _TRIED, frozenset(), None) | {"stream": False}
                body.pop("stream_options")
                try:
                    usage = self.server.post(self.url, body).get("usage") or {}
                except UserError as error:
                    failed = error  # the last form is the plainest: what is wrong with it is no matter of form
                    continue
                read = usage.get("prompt_tokens")
                if read in (None, len(ids)):
                    return ""
                if as_text:
                    return f"the server reads a prompt of {len(ids)} tokens as {read}: its answers are to another text"
        assert failed is not None
        raise failed

    def version(self) -> str:
        """The engine's version; empty: not told."""
        return ""

    def flags(self) -> dict[str, Any]:
        """What the server tells of its settings that matter here."""
        return {}

    def body(
        self, prompt: Sequence[int] | str, limit: int, eos: frozenset[int], sampler: Sampler | None
    ) -> dict[str, Any]:
        """A streamed request for at most `limit` tokens."""
        drawn: dict[str, Any] = {"temperature": 0.0}
        if sampler is not None:
            drawn = {"temperature": sampler.temperature, "top_p": sampler.top_p, "seed": sampler.number % _SEEDS}
        return {
            "model": self.model,
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": limit,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._extra,
            **drawn,
            **self.more(eos, sampler),
        }

    def more(self, eos: frozenset[int], sampler: Sampler | None) -> dict[str, Any]:
        """Settings beyond OpenAI's."""
        if sampler is not None and sampler.top_k:
            if not self._extra:
                raise UserError(f"{self.url} takes no top_k: leave --top-k out, or the peer")
            return {"top_k": sampler.top_k}
        return {}

    def before(self) -> None:
        """Prepare for a request, untimed."""
        self.told = Told()
        self.server.wake()

    def after(self, tokens: int) -> None:
        """Complete `told` after an answer of so many tokens, untimed."""

    def read(self, event: dict[str, Any]) -> Piece:
        """Return an event's part of the answer, and keep what it tells besides."""
        if usage := event.get("usage"):
            self.told.tokens, self.told.prompt_tokens = usage.get("completion_tokens"), usage.get("prompt_tokens")
            self.told.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        piece = Piece()
        for choice in event.get("choices") or []:
            piece.ids += choice.get("token_ids") or []
            piece.text += choice.get("text") or ""
            piece.finish = choice.get("finish_reason") or piece.finish
        return piece

    def whole(self, body: dict[str, Any], streamed: Sequence[int], took_s: float) -> list[int]:
        """Return all ids of an answer of which `streamed` came in `took_s`."""
        return list(streamed)


class TakesIds(OpenAI):
    """An engine that is known to take prompts as ids."""

    def settle(self, ids: Sequence[int], text: str) -> str:
        """Nothing is open."""
        return ""


class OwnAPI(TakesIds):
    """An engine that is asked in an API of its own."""

    @property
    def url(self) -> str:
        """Next to /v1."""
        return self.server.root + self.path


class VLLM(TakesIds):
    """vLLM: ids both ways. Drafts are counted by differences of its counters, which other clients move, too."""

    name, engine = "vllm", "vLLM"
    _COUNTER = re.compile(
        r"vllm:spec_decode_num_(drafts|draft_tokens|accepted_tokens)(?:_total)?(?:\{[^}]*\})?\s+(\S+)"
    )
    _before: dict[str, float] | None = None

    def version(self) -> str:
        """As `/version` tells."""
        return str(self.server.optional(f"{self.server.root}/version").get("version", ""))

    def more(self, eos: frozenset[int], sampler: Sampler | None) -> dict[str, Any]:
        """No default of the model's generation_config.json, no prefix from an earlier prompt."""
        return {
            "return_token_ids": True,
            "stop_token_ids": sorted(eos),
            "ignore_eos": not eos,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "min_p": 0.0,
            "top_k": (sampler.top_k if sampler else 0) or -1,
            "cache_salt": secrets.token_hex(8),
        }

    def before(self) -> None:
        """Read the counters."""
        super().before()
        self._before = self._counters()

    def after(self, tokens: int) -> None:
        """Read them again. Drafts beyond the answer's end are counted as accepted there, but no pass can be missing."""
        before, now = self._before, self._counters()
        if before is None or now is None:
            return
        drafts, drafted, accepted = (
            round(now.get(key, 0) - before.get(key, 0)) for key in ("drafts", "draft_tokens", "accepted_tokens")
        )
        self.told.passes = max(drafts, tokens - 1 - accepted)
        if now:
            self.told.drafted, self.told.accepted = drafted, accepted

    def _counters(self) -> dict[str, float] | None:
        """The counters by name, summed over engines; empty: no speculation; None: no metrics."""
        text = self.server.text(f"{self.server.root}/metrics")
        if text is None:
            return None
        found: dict[str, float] = {}
        for line in text.splitlines():
            if match := self._COUNTER.fullmatch(line.strip()):
                found[match[1]] = found.get(match[1], 0.0) + float(match[2])
        return found


class SGLang(OwnAPI):
    """SGLang's own API: ids both ways, and its counts come with the answer."""

    name, engine = "sglang", "SGLang"
    path = "/generate"
    _FLAGS = (
        "speculative_algorithm",
        "speculative_num_steps",
        "speculative_eagle_topk",
        "speculative_num_draft_tokens",
        "speculative_draft_model_path",
        "dtype",
        "quantization",
        "attention_backend",
        "tp_size",
        "kv_cache_dtype",
    )
    _BY_PARTS = ("stream_output", "incremental_streaming_output")  # 0.5's name of the setting, and the later one

    def __init__(self, server: Server, model: str):
        super().__init__(server, model)
        # Its arguments hold keys as well: only what is asked for below leaves this class.
        self._info = server.optional(f"{server.root}/server_info") or server.optional(f"{server.root}/get_server_info")
        self._seen = 0

    def version(self) -> str:
        """As its server info tells."""
        return str(self._info.get("version", ""))

    def flags(self) -> dict[str, Any]:
        """Those of its arguments that decide the speed."""
        return {key: self._info[key] for key in self._FLAGS if self._info.get(key) not in (None, "")}

    def body(
        self, prompt: Sequence[int] | str, limit: int, eos: frozenset[int], sampler: Sampler | None
    ) -> dict[str, Any]:
        """In its own words; the end token stays in the answer."""
        drawn: dict[str, Any] = {"temperature": 0.0}
        if sampler is not None:
            drawn = {"temperature": sampler.temperature, "top_p": sampler.top_p, "top_k": sampler.top_k or -1}
        settings = {"max_new_tokens": limit, "stop_token_ids": sorted(eos), "ignore_eos": not eos, "no_stop_trim": True}
        return {"input_ids": list(prompt), "stream": True, "sampling_params": settings | drawn}

    def before(self) -> None:
        """Drop the prefixes of earlier prompts."""
        super().before()
        self._seen = 0
        self.server.text(f"{self.server.root}/flush_cache")

    def read(self, event: dict[str, Any]) -> Piece:
        """Its ids are all so far, unless it streams by parts."""
        meta, ids = event.get("meta_info") or {}, event.get("output_ids") or []
        new = ids if any(self._info.get(key) for key in self._BY_PARTS) else ids[self._seen :]
        self._seen += len(new)
        reason = meta.get("finish_reason") or {}
        if reason.get("type") == "abort":
            raise UserError(f"{self.url} ended its answer with an error: {reason.get('message') or 'aborted'}")
        self.told = Told(
            meta.get("prompt_tokens"),
            meta.get("cached_tokens"),
            meta.get("completion_tokens"),
            meta.get("spec_verify_ct"),
            meta.get("spec_draft_token_num"),
            meta.get("spec_accept_token_num"),
        )
        matched = reason.get("matched")
        return Piece(new, "", reason.get("type", ""), matched if isinstance(matched, int) else None)

    def after(self, tokens: int) -> None:
        """Without speculation, each pass gave a token.

        Raises:
            UserError: the server counts another number of tokens, so that its events were not read as they were meant.

        """
        if self.told.tokens not in (None, tokens):
            raise UserError(
                f"{self.url} counts {self.told.tokens} tokens in an answer of which {tokens} came: its answers cannot "
                "be trusted; start it without --stream-output or --incremental-streaming-output"
            )
        if self.told.passes is None and self._info and not self._info.get("speculative_algorithm"):
            self.told.passes = tokens - 1


class LlamaServer(OwnAPI):
    """llama.cpp's server in its own API: ids both ways, and its counts come with the last event."""

    name, engine = "llama-server", "llama.cpp"
    path = "/completion"

    def __init__(self, server: Server, model: str):
        super().__init__(server, model)
        self._props = server.optional(f"{server.root}/props")

    def version(self) -> str:
        """As `/props` tells."""
        return str(self._props.get("build_info", ""))

    def flags(self) -> dict[str, Any]:
        """The file's name and format; it does not tell what drafts."""
        found = {"model": str(self._props.get("model_path", "")).rpartition("/")[2]}
        found["ftype"] = str(self._props.get("model_ftype", ""))
        return {key: value for key, value in found.items() if value}

    def body(
        self, prompt: Sequence[int] | str, limit: int, eos: frozenset[int], sampler: Sampler | None
    ) -> dict[str, Any]:
        """In its own words: no prefix from an earlier prompt, warpers in the order of transformers."""
        drawn: dict[str, Any] = {"temperature": 0.0, "samplers": ["top_k"], "top_k": 1}
        if sampler is not None:
            drawn = {"temperature": sampler.temperature, "top_k": sampler.top_k, "top_p": sampler.top_p}
            drawn |= {"samplers": ["temperature", "top_k", "top_p"], "seed": sampler.number % _SEEDS}
        return {
            "model": self.model,
            "prompt": list(prompt),
            "n_predict": limit,
            "stream": True,
            "return_tokens": True,
            "cache_prompt": False,
            "ignore_eos": not eos,
            **drawn,
        }

    def read(self, event: dict[str, Any]) -> Piece:
        """The ids of an event; the last one tells the counts."""
        if event.get("stop") and (timings := event.get("timings")):
            tokens, accepted = timings["predicted_n"], timings.get("draft_n_accepted")
            passes = tokens - 1 - (accepted or 0)  # after the prefill
            self.told = Told(
                event.get("tokens_evaluated"), timings.get("cache_n"), tokens, passes, timings.get("draft_n"), accepted
            )
        finish = {"eos": "stop", "word": "stop", "limit": "length"}.get(event.get("stop_type", ""), "")
        return Piece(event.get("tokens") or [], event.get("content") or "", finish)

    def whole(self, body: dict[str, Any], streamed: Sequence[int], took_s: float) -> list[int]:
        """Ask again, unstreamed, where ids are missing: its stream leaves out those that end within a character.

        Raises:
            UserError: the second answer is another one.

        """
        if self.told.tokens in (None, len(streamed)):
            return list(streamed)
        # Nothing is sent until all is done, which takes about as long as the stream did.
        found = self.server.post(self.url, body | {"stream": False}, more_s=_PATIENCE * took_s)
        ids: list[int] = found.get("tokens") or []
        left = iter(ids)
        if len(ids) != self.told.tokens or not all(token in left for token in streamed):  # in this order
            raise UserError(f"{self.url} gives two answers to one request: it must decode greedily, or with a seed")
        return ids


DIALECTS: dict[str, type[OpenAI]] = {kind.name: kind for kind in (OpenAI, VLLM, SGLang, LlamaServer)}
_OWNERS = {"vllm": VLLM, "sglang": SGLang, "llamacpp": LlamaServer}  # as `/v1/models` says


def dialect_of(owner: str) -> type[OpenAI]:
    """The form of a server whose models have this owner."""
    return _OWNERS.get(owner, OpenAI)
