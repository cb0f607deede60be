"""A scripted HTTP server on this machine that speaks like an engine's, and fails like one."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OWNERS = {"openai": "me", "vllm": "vllm", "sglang": "sglang", "llama-server": "llamacpp"}
PATHS = {"openai": "/v1/completions", "vllm": "/v1/completions", "sglang": "/generate", "llama-server": "/completion"}
DRAFTS = 4  # in every pass of a server that speculates
Answer = Callable[[list[int] | str, int], list[int]]


class Scripted:
    """`answer` gives an answer's ids, end token included; `groups`: how many of them each pass adds, in turns."""

    def __init__(self, api: str, answer: Answer, *, eos: int = 258, groups: tuple[int, ...] = (1,), **more: Any):
        self.api, self.answer, self.eos, self.groups = api, answer, eos, groups
        self.models: list[str] = more.pop("models", ["tiny"])
        self.vocab: int | None = more.pop("vocab", None)
        self.key: str = more.pop("key", "")
        self.text_only: bool = more.pop("text_only", False)
        self.strict: bool = more.pop("strict", False)  # refuses what OpenAI's API does not have
        self.adds: int = more.pop("adds", 0)  # tokens that it puts before a prompt
        self.cached: int = more.pop("cached", 0)
        self.parts: str = more.pop("parts", "")  # SGLang's setting by which its stream has no repetition
        self.lost: frozenset[int] = more.pop("lost", frozenset())  # places that llama.cpp's stream leaves out
        self.decode: Callable[[list[int]], str] = more.pop("decode", lambda ids: "".join(map(chr, ids)))
        self.fault: str = more.pop("fault", "")
        self.first: int = more.pop("first", 1)  # tokens in the first event
        self.pace_s: float = more.pop(
            "pace_s", 0.0
        )  # of each event, or of each token of an answer that is not streamed
        self.plain: bool = more.pop("plain", False)  # JSON with all characters as they are, sent in pieces of 3 bytes
        assert not more, more
        self.asked: list[dict[str, Any]] = []  # bodies of requests for answers
        self.headers: list[dict[str, str]] = []
        self.counters = {"drafts": 0, "draft_tokens": 0, "accepted_tokens": 0}
        self.over = threading.Event()
        self.hang_up = False
        handler = type("Handler", (_Handler,), {"script": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.root = f"http://127.0.0.1:{self._http.server_port}"
        self.url = f"{self.root}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.over.set()
        self._http.shutdown()
        self._http.server_close()

    # --- what it tells of itself -------------------------------------------------------------------------------------

    def page(self, path: str) -> Any:
        """The JSON or text at a path; None: nothing is there."""
        if path == "/v1/models":
            meta = {} if self.vocab is None else {"meta": {"n_vocab": self.vocab}}
            return {"object": "list", "data": [{"id": m, "owned_by": OWNERS[self.api]} | meta for m in self.models]}
        known: dict[tuple[str, str], Any] = {
            ("vllm", "/version"): {"version": "0.11.0"},
            ("vllm", "/metrics"): self.metrics(),
            ("sglang", "/server_info"): {
                "version": "0.5.4",
                "speculative_algorithm": "EAGLE" if self.groups != (1,) else None,
                **{key: key == self.parts for key in ("stream_output", "incremental_streaming_output")},
                "api_key": self.key,
            },
            ("llama-server", "/props"): {"build_info": "b11549-abc", "model_path": "/srv/tiny.gguf"},
        }
        return known.get((self.api, path))

    def metrics(self) -> str:
        """vLLM's counters in Prometheus' form, among others; those of speculation only where it speculates."""
        lines = ["# HELP vllm:num_requests_running Number of requests.", 'vllm:num_requests_running{engine="0"} 0.0']
        if self.groups != (1,):
            for name, value in self.counters.items():
                lines.append(f"# TYPE vllm:spec_decode_num_{name}_total counter")
                lines.append(f'vllm:spec_decode_num_{name}_total{{engine="0",model_name="tiny"}} {float(value)}')
                lines.append(f'vllm:spec_decode_num_{name}_created{{engine="0"}} 1.7e+09')
        return "\n".join(lines)

    # --- what it answers ---------------------------------------------------------------------------------------------

    def refusal(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, Any] | None:
        """Status and body of an error before the answer."""
        given = headers.get("Authorization", "").removeprefix("Bearer ")
        if self.key and given != self.key:
            return 401, {"error": {"message": f"Incorrect API key provided: {given!r}"}}
        if path != PATHS[self.api]:
            return 404, {"detail": "Not Found"}
        if self.text_only and not isinstance(body["prompt"], str):
            return 422, {"detail": "prompt: Input should be a valid string"}
        if self.fault == "500":
            return 500, {"error": {"message": "CUDA out of memory.\nTried to allocate 2.00 GiB"}}
        if self.strict and "repeat_penalty" in body:
            return 400, {"error": {"message": "Unrecognized request argument supplied: repeat_penalty"}}
        return None

    def parts_of(self, body: dict[str, Any]) -> tuple[int, list[int], str, list[list[int]]]:
        """Tokens of the prompt, the answer's ids, why it ended, and the ids pass by pass."""
        prompt = body.get("input_ids") or body["prompt"]
        settings = body.get("sampling_params", body)
        limit = next(settings[key] for key in ("max_tokens", "max_new_tokens", "n_predict") if key in settings)
        ids = self.answer(prompt, limit)
        if not settings.get("ignore_eos") and self.eos in ids:
            ids = ids[: ids.index(self.eos) + 1]
        ids = ids[:limit]
        sizes = itertools.chain([self.first], itertools.cycle(self.groups))
        left, passes = iter(ids), []
        while part := list(itertools.islice(left, next(sizes))):
            passes.append(part)
        return len(prompt) + self.adds, ids, "stop" if ids and ids[-1] == self.eos else "length", passes

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        """An answer that is not streamed."""
        prompt, ids, finish, _ = self.parts_of(body)
        time.sleep(self.pace_s * len(ids))
        usage = {"prompt_tokens": prompt, "completion_tokens": len(ids)}
        return {"choices": [{"text": self.shown(ids), "finish_reason": finish}], "usage": usage, "tokens": ids}

    def shown(self, ids: list[int]) -> str:
        return self.decode([token for token in ids if token != self.eos])

    def events(self, body: dict[str, Any]) -> Iterator[Any]:
        """The events of a streamed answer."""
        prompt, ids, finish, passes = self.parts_of(body)
        if self.groups != (1,):
            self.counters["drafts"] += len(passes) - 1
            self.counters["draft_tokens"] += DRAFTS * (len(passes) - 1)
            self.counters["accepted_tokens"] += len(ids) - len(passes)
        made = {"openai": self._openai, "vllm": self._openai, "sglang": self._sglang, "llama-server": self._llama}
        yield from made[self.api](prompt, ids, finish, passes)

    def _openai(self, prompt: int, ids: list[int], finish: str, passes: list[list[int]]) -> Iterator[Any]:
        for number, part in enumerate(passes):
            last = number == len(passes) - 1
            choice: dict[str, Any] = {"index": 0, "text": self.shown(part), "finish_reason": finish if last else None}
            yield {"choices": [choice | ({"token_ids": part} if self.api == "vllm" else {})]}
        usage = {"prompt_tokens": prompt, "completion_tokens": len(ids)}
        yield {"choices": [], "usage": usage | {"prompt_tokens_details": {"cached_tokens": self.cached}}}

    def _sglang(self, prompt: int, ids: list[int], finish: str, passes: list[list[int]]) -> Iterator[Any]:
        so_far: list[int] = []
        for number, part in enumerate(passes):
            so_far += part
            last = number == len(passes) - 1
            meta: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": len(so_far), "cached_tokens": 0}
            meta["finish_reason"] = {"type": finish, "matched": self.eos} if last else None
            if self.groups != (1,):
                meta |= {"spec_verify_ct": number, "spec_draft_token_num": DRAFTS * number}
                meta |= {"spec_accept_token_num": len(so_far) - 1 - number}
            yield {"text": "", "output_ids": list(part if self.parts else so_far), "meta_info": meta}

    def _llama(self, prompt: int, ids: list[int], finish: str, passes: list[list[int]]) -> Iterator[Any]:
        for place, token in enumerate(ids):
            if place not in self.lost:
                yield {"index": 0, "content": self.shown([token]), "tokens": [token], "stop": False}
        timings = {"cache_n": self.cached, "prompt_n": prompt, "predicted_n": len(ids)}
        if self.groups != (1,):
            accepted = len(ids) - len(passes)
            timings |= {"draft_n": DRAFTS * (len(passes) - 1), "draft_n_accepted": accepted}
        told = {"stop_type": {"stop": "eos", "length": "limit"}[finish], "tokens_evaluated": prompt, "tokens": []}
        yield {"content": "", "stop": True, "timings": timings, **told}


class _Handler(BaseHTTPRequestHandler):
    """One request. Streams are chunked, so that one that breaks off is seen to."""

    script: Scripted
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Nothing is logged."""

    def do_GET(self) -> None:
        if self.script.hang_up:
            self.script.hang_up, self.close_connection = False, True
            return None
        if self.script.fault == "html":
            return self._send(200, "<html><body>Welcome to nginx!</body></html>")
        found = self.script.page(self.path)
        return self._send(404, {"detail": "Not Found"}) if found is None else self._send(200, found)

    def do_POST(self) -> None:
        assert not self.script.hang_up, "an answer was asked for on a connection that is gone"
        script, body = self.script, json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
        if self.path == "/flush_cache":
            return self._send(200, "Cache flushed.")
        script.headers.append(dict(self.headers))
        script.asked.append(body)
        if refused := script.refusal(self.path, body, dict(self.headers)):
            return self._send(*refused)
        return self._stream(body) if body.get("stream") else self._send(200, script.whole(body))

    def _send(self, status: int, content: Any) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def _stream(self, body: dict[str, Any]) -> None:
        fault = self.script.fault
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._chunk(": keep-alive\n\n")
        for number, event in enumerate(self.script.events(body)):
            time.sleep(self.script.pace_s)
            if number == 2 and fault == "cut":
                self.close_connection = True
                return
            if number == 2 and fault == "silent":
                self.script.over.wait(30)
                self.close_connection = True
                return
            if number == 2 and fault in ("inside", "garbage", "unfinished"):
                said = {"inside": json.dumps({"error": {"message": "engine died"}}), "garbage": "{tokens"}.get(fault)
                self._chunk(f"data: {said}\n\n" if said else "")
                break
            if self.script.plain:
                self._in_pieces(f"data: {json.dumps(event, ensure_ascii=False)}\r\n\r\n".encode())
            else:
                self._chunk(f"data: {json.dumps(event)}\n\n")
        else:
            self._chunk("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _in_pieces(self, content: bytes) -> None:
        for start in range(0, len(content), 3):
            part = content[start : start + 3]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))

    def _chunk(self, text: str) -> None:
        if text:
            self.wfile.write(f"{len(text.encode()):x}\r\n{text}\r\n".encode())
