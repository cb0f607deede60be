"""Any OpenAI-compatible server: vLLM, SGLang, llama.cpp's server, and others that stream completions.

Prompts are the token ids that all others read, and answers come back as ids, where the server takes and gives them;
else text goes both ways and is counted with the model's tokenizer. Times are the client's, over HTTP: to the first
token, and from there to the last one. Every server is another engine, with kernels, number formats and a scheduler of
its own. To see what its speculation gains, run a second server without, and name that as `baseline`.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.drafting.method import Answer, Peer
from bench.errors import UserError, did_you_mean
from bench.models.chat import ChatFormat
from bench.models.checkpoints import load_tokenizer
from bench.models.hf_peer import kept
from methods.openai.dialects import DIALECTS, OpenAI, Piece, Told, dialect_of
from methods.openai.server import Server, check_url

if TYPE_CHECKING:
    from bench.drafting.sampling import Sampler
    from bench.engine.decoder import Decoder
    from bench.models.checkpoints import Checkpoint

AUTO = "auto"
BY_IDS, BY_TEXT = "tokens come as ids", "answers come as text, counted with the model's tokenizer"


@dataclass(frozen=True)
class ServerConfig:
    """Where the server is, and what its answers are compared with."""

    url: str = field(default="", metadata={"help": "of the server, with its /v1: http://localhost:8000/v1"})
    model: str = field(default="", metadata={"help": "its name for the model; needless where it serves only one"})
    name: str = field(default="", metadata={"help": "what reports call this server"})
    baseline: str = field(
        default="", metadata={"help": "name or URL of another server of the run: the report compares the two"}
    )
    audit: bool = field(
        default=False,
        metadata={"help": "answers must be vanilla's: for a server with the same weights and number format"},
    )
    api: str = field(
        default=AUTO, metadata={"help": f"how to ask it: {', '.join([AUTO, *DIALECTS])}; auto: as it says it is"}
    )
    engine: str = field(default="", metadata={"help": "its engine and version, for the report, if it does not tell"})
    flags: str = field(default="", metadata={"help": "the flags that it was started with, for the report"})
    key_env: str = field(default="", metadata={"help": "environment variable with its key, which is recorded nowhere"})
    timeout: float = field(default=60.0, metadata={"help": "most seconds without a sign of life"})

    def __post_init__(self) -> None:
        try:
            self._check()
        except ValueError as error:  # a UserError is shown alone: not behind the whole spelling, URL and all
            raise UserError(f"openai: {error}") from None

    def _check(self) -> None:
        if self.url:
            check_url(self.url)
        if self.key_env and not self.key_env.isidentifier():
            raise ValueError("key_env= takes the name of an environment variable, and not the key itself")
        if self.api not in (AUTO, *DIALECTS):
            raise ValueError(f"api={self.api} is unknown: give one of {', '.join([AUTO, *DIALECTS])}")
        if not self.timeout > 0:
            raise ValueError(f"timeout={self.timeout} must be above 0")
        if self.audit and self.baseline:
            raise ValueError("with baseline= answers are compared with that server's: leave audit= out")

    def check_files(self, model: str) -> None:
        """Raise UserError if no server is named."""
        if not self.url:
            raise UserError("openai: url= is missing: openai:url=http://localhost:8000/v1")


class OpenAIServer(Peer):
    """Streamed answers of a server; greedy or sampled as the run asks."""

    Config = ServerConfig
    lossless = False
    example = "openai:url=http://localhost:8000/v1"

    def __init__(self, target: Decoder, config: ServerConfig, checkpoint: Checkpoint):
        super().__init__(target, config, checkpoint)
        self.lossless = config.audit
        self.server = Server(config.url, config.key_env, config.timeout)
        model, owner, vocab = self._find_model()
        if vocab not in (None, target.config.vocab):
            own = f"{target.name} has {target.config.vocab}"
            raise UserError(f"{config.url} serves another model: it has {vocab} tokens, {own}")
        kind = dialect_of(owner) if config.api == AUTO else DIALECTS[config.api]
        self.dialect: OpenAI = kind(self.server, model)
        self._notes: dict[str, Any] = {"url": config.url, "model": model, "api": self.dialect.name}
        if config.name:
            self._notes["name"] = config.name
        if not config.audit:
            self._notes["arithmetic"] = "own arithmetic: not audited against vanilla"
        if kind is OpenAI:
            self._notes["prefix_cache"] = "whether it keeps the beginnings of prompts in a cache is not known"
            ids = self._chat.prompt([], "Hello")
            if said := self.dialect.settle(ids, self._text(ids)):
                self._notes["prompts"] = said
            elif self.dialect.prompt_as_text:
                self._notes["prompts"] = "sent as text"

    @property
    def notes(self) -> dict[str, Any]:
        """The server, how prompts and tokens are exchanged with it, and what would spoil its times."""
        return self._notes

    @property
    def engine(self) -> dict[str, Any]:
        """The engine as it calls itself, else as the user does."""
        told = self.config.engine or self.dialect.engine or "an engine that does not tell its name"
        flags = ", ".join(f"{key} {value}" for key, value in self.dialect.flags().items())
        return {"name": told, "version": self.dialect.version(), "flags": self.config.flags or flags}

    def elsewhere_s(self) -> float | None:
        """Nobody tells which processes are the server's, nor whether they are on this machine."""
        return None

    def _find_model(self) -> tuple[str, str, int | None]:
        """The server's name for the model, the owner that it tells, and the vocabulary if it tells that.

        Raises:
            UserError: it lists no such model, or several where none is named, or is no OpenAI-compatible server.

        """
        url, wanted = f"{self.server.url}/models", self.config.model
        found = self.server.get(url)
        listed = found.get("data") if isinstance(found, dict) else None
        if not isinstance(listed, list) or not all(isinstance(entry, dict) and "id" in entry for entry in listed):
            raise UserError(f"{url} lists no models: is it the URL of an OpenAI-compatible server, with its /v1?")
        by_name = {str(entry["id"]): entry for entry in listed}
        names = ", ".join(by_name) or "none"
        if not wanted and len(by_name) != 1:
            raise UserError(f"{self.server.url} serves {len(by_name)} models ({names}): choose one with model=")
        name = wanted or next(iter(by_name))
        if name not in by_name:
            raise UserError(f"{self.server.url} has no model {name!r}{did_you_mean(name, by_name)}; it serves: {names}")
        entry = by_name[name]
        return name, str(entry.get("owned_by", "")), (entry.get("meta") or {}).get("n_vocab")

    @functools.cached_property
    def _chat(self) -> ChatFormat:
        """The model's tokenizer, for servers that take or give text."""
        return ChatFormat(load_tokenizer(self.checkpoint), self.target.config.vocab)

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self._chat.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def generate(
        self, prompt: Sequence[int], limit: int, eos: frozenset[int], sampler: Sampler | None = None
    ) -> Answer:
        """Stream an answer of at most `limit` tokens.

        Raises:
            UserError: no answer, an error, silence, a stream that is cut off, or tokens of another model.

        """
        dialect = self.dialect
        body = dialect.body(self._text(prompt) if dialect.prompt_as_text else prompt, limit, eos, sampler)
        dialect.before()
        stream = _Stream(time.perf_counter())
        for event in self.server.events(dialect.url, body):
            stream.take(event.at_s, dialect.read(event.data))
        if stream.finish not in ("stop", "length"):
            why = f"({stream.finish})" if stream.finish else "without saying that it is complete"
            raise UserError(f"{dialect.url} cut its answer off after {stream.events} events {why}")
        ids = dialect.whole(body, stream.ids, stream.took_s) if stream.ids else self._chat.encode(stream.text)
        if not stream.ids:
            stream.first_tokens = _alike(self._chat.encode(stream.first_text), ids)
        if stream.finish == "stop" and eos and len(ids) < limit and not eos & set(ids):
            ids.append(self._end(eos) if stream.stopped_at is None else stream.stopped_at)
            stream.last_s = stream.finish_s
        tokens = kept(ids, limit, eos)
        if not tokens:
            raise UserError(f"{dialect.url} gave an empty answer to a prompt of {len(prompt)} tokens")
        if (largest := max(tokens)) >= self.target.config.vocab:
            raise UserError(f"{dialect.url} serves another model: {self.target.name} has no token {largest}")
        dialect.after(len(ids))
        self._note(by_ids=bool(stream.ids), prompt=len(prompt), at_once=stream.events == 1 < len(tokens))
        return stream.answer(tokens, len(ids), dialect.told)

    def _end(self, eos: frozenset[int]) -> int:
        """The end token that a server which gives text stopped at: it does not say which."""
        own = self._chat.tokenizer.eos_token_id
        return own if own in eos else min(eos)

    def _note(self, *, by_ids: bool, prompt: int, at_once: bool) -> None:
        """Keep what the report must say, as it comes out: how tokens came, and what was not as asked for."""
        told = self.dialect.told
        if at_once:
            self._notes["times"] = "some answers came in one event: how fast they were decoded is not known"
        self._notes["tokens"] = BY_IDS if by_ids else BY_TEXT
        if told.prompt_tokens not in (None, prompt):
            self._notes["prompts"] = f"the server read a prompt of {prompt} tokens as {told.prompt_tokens}"
        if told.cached_tokens:
            self._notes["prefix_cache"] = (
                f"the server had {told.cached_tokens} of a prompt's {prompt} tokens in its cache: its time to the "
                "first token is too short; start it without prefix caching"
            )


class _Stream:
    """An answer as it comes: its parts and their times."""

    def __init__(self, start_s: float):
        self.start_s, self.first_s, self.last_s, self.finish_s = start_s, 0.0, 0.0, 0.0
        self.ids: list[int] = []
        self.text, self.first_text, self.finish = "", "", ""
        self.stopped_at: int | None = None
        self.events = self.first_tokens = 0

    @property
    def took_s(self) -> float:
        """Seconds from the request to the answer's end."""
        return self.finish_s - self.start_s

    def take(self, at_s: float, piece: Piece) -> None:
        """Add a part that came at this time."""
        if piece.ids or piece.text:
            self.events += 1
            self.last_s = at_s
            if self.events == 1:
                self.first_s, self.first_tokens, self.first_text = at_s, len(piece.ids), piece.text
            self.ids += piece.ids
            self.text += piece.text
        if piece.finish:
            self.finish, self.finish_s, self.stopped_at = piece.finish, at_s, piece.stopped_at

    def answer(self, tokens: list[int], came: int, told: Told) -> Answer:
        """The answer with its times: to the first event with tokens, and from there to the last one.

        What comes in a single event has no decode time: all counts as the prefill's. `came`: tokens, those cut off too.
        """
        first_s = self.first_s or self.finish_s
        first = min(max(1, self.first_tokens), len(tokens)) if self.events > 1 else len(tokens)
        told.leave(first, len(tokens), came)
        return Answer(
            tokens,
            first_s - self.start_s,
            max(0.0, self.last_s - first_s) if first < len(tokens) else 0.0,
            first_tokens=first,
            decode_passes=told.passes,
            drafted=told.drafted,
            accepted=told.accepted,
        )


def _alike(first: Sequence[int], ids: Sequence[int]) -> int:
    """Tokens that the beginning of an answer has in common with the whole: the next one may have come in part."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, ids, strict=False)))
