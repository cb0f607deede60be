"""Requests to an HTTP server, and the events that it streams. What is timed is never retried."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from bench.errors import UserError

_SHOWN_CHARS = 300  # of a server's own words
_DATA = re.compile(r"(data|error):\s*(.*)", re.DOTALL)
_DONE = "[DONE]"


class Event(NamedTuple):
    """One event of a stream, and when its line was complete."""

    at_s: float
    data: dict[str, Any]


def check_url(url: str) -> None:
    """Raise ValueError, which does not repeat the URL's secrets, if it is no plain http(s) URL."""
    parts = urlsplit(url)
    if "@" in url or parts.query or parts.fragment:
        raise ValueError(
            "url= must not hold credentials or a query, because records and reports show it: put the key into an "
            "environment variable and name that with key_env="
        )
    try:
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        known = False
    if not known:
        raise ValueError(f"url={url} is no server's URL: give one like http://localhost:8000/v1")


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Split an event stream at newlines alone: what else ends lines in Unicode may be a character of the answer."""
    left = b""
    for chunk in chunks:
        *whole, left = (left + chunk).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode(errors="replace")
    if left:
        yield left.decode(errors="replace")


def _key(variable: str) -> str:
    """Return the key in an environment variable: a line's end after it is that of the file it came from.

    Raises:
        UserError: there is none, or no header can hold it: the HTTP library would show it in its own error.

    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"key_env={variable}: there is no such environment variable, or it is empty: set it to the server's "
            "key, or leave key_env out"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"key_env={variable}: its value has characters other than printable ASCII, which no key has: set it to "
            "the server's key alone"
        )
    return key


class Server:
    """A server by its URL. The key comes from an environment variable, and no error repeats it."""

    def __init__(self, url: str, key_env: str, timeout_s: float):
        """`timeout_s`: how long it may send nothing.

        Raises:
            UserError: the variable is named, but does not hold a key.

        """
        import httpx2

        self.url, self.timeout_s = url.rstrip("/"), timeout_s
        self.root = self.url.removesuffix("/v1")
        self._key = _key(key_env) if key_env else ""
        # Settings of the environment (proxies, .netrc) would put other machines, or other keys, into the measurement.
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=timeout_s,
            trust_env=False,
        )
        weakref.finalize(self, self._client.close)

    def wake(self) -> None:
        """Have a connection that the server has not closed meanwhile: some close idle ones after seconds."""
        self.text(f"{self.url}/models")

    def get(self, url: str) -> Any:
        """Return the JSON at a URL.

        Raises:
            UserError: no answer, an error, or no JSON.

        """
        return self._json(url, self._ask("GET", url))

    def text(self, url: str) -> str | None:
        """Return the text at a URL; None: there is none."""
        try:
            return self._ask("GET", url)
        except UserError:
            return None

    def optional(self, url: str) -> dict[str, Any]:
        """Return the JSON object at a URL that not every version of a server has; empty: it has none."""
        text = self.text(url)
        try:
            found = json.loads(text or "{}")
        except json.JSONDecodeError:
            return {}
        return found if isinstance(found, dict) else {}

    def post(self, url: str, body: dict[str, Any], more_s: float = 0.0) -> Any:
        """Return the JSON that answers `body`, for which the server has `more_s` than usual; errors: see `get`."""
        return self._json(url, self._ask("POST", url, body, more_s))

    def events(self, url: str, body: dict[str, Any]) -> Iterator[Event]:
        """Yield the server-sent events that answer `body`, up to the end of the stream.

        Raises:
            UserError: no answer, an error before or within the stream, silence, or events that are no JSON.

        """
        import httpx2

        try:
            with self._client.stream("POST", url, json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise self._refused(url, response.status_code, response.text)
                last_s = time.perf_counter()
                for line in _lines(response.iter_bytes()):
                    now_s = time.perf_counter()
                    found = _DATA.match(line)
                    if found is None:  # an empty line, a comment that keeps the connection alive, an event's name
                        if now_s - last_s > self.timeout_s:
                            raise self._silent(url, self.timeout_s)
                        continue
                    last_s = now_s
                    if found[2].strip() == _DONE:
                        return
                    yield Event(now_s, self._event(url, found[1], found[2]))
        except httpx2.HTTPError as error:
            raise self._failed(url, error, self.timeout_s) from error

    def _event(self, url: str, field: str, text: str) -> dict[str, Any]:
        data = self._json(url, text)
        if field == "error" or not isinstance(data, dict) or data.get("error"):
            raise UserError(f"{url} ended its answer with an error: {self._shown(text)}")
        return data

    def _ask(self, method: str, url: str, body: dict[str, Any] | None = None, more_s: float = 0.0) -> str:
        import httpx2

        timeout_s = self.timeout_s + more_s
        try:
            with contextlib.suppress(httpx2.RemoteProtocolError):
                return self._body(self._client.request(method, url, json=body, timeout=timeout_s))
            # The server closed an idle connection just then: nothing of this is timed, and a new one will do.
            return self._body(self._client.request(method, url, json=body, timeout=timeout_s))
        except httpx2.HTTPError as error:
            raise self._failed(url, error, timeout_s) from error

    def _body(self, response: Any) -> str:
        if response.status_code != 200:
            raise self._refused(str(response.url), response.status_code, response.text)
        return str(response.text)

    def _json(self, url: str, text: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise UserError(
                f"{url} answers with something else than JSON ({self._shown(text)}): is it the URL of an "
                "OpenAI-compatible server, with its /v1?"
            ) from None

    def _refused(self, url: str, status: int, body: str) -> UserError:
        remedy = {
            401: "; put its key into an environment variable and name that with key_env=",
            403: "; put its key into an environment variable and name that with key_env=",
            404: "; is it the URL of an OpenAI-compatible server, with its /v1?",
        }.get(status, "")
        return UserError(f"{url} answers with status {status}: {self._shown(body) or 'no text'}{remedy}")

    def _failed(self, url: str, error: Exception, timeout_s: float) -> UserError:
        import httpx2

        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return UserError(f"no server answers at {url} ({self._shown(str(error))}): start it, or correct url=")
        if isinstance(error, httpx2.TimeoutException):
            return self._silent(url, timeout_s)
        if isinstance(error, httpx2.LocalProtocolError):  # it may quote a header in a form that hides the key from us
            return UserError(f"{url} cannot be asked: the HTTP library refuses the request; correct url= or key_env=")
        return UserError(f"{url} broke its answer off ({type(error).__name__}: {self._shown(str(error))})")

    def _silent(self, url: str, timeout_s: float) -> UserError:
        return UserError(f"{url} sent nothing for {timeout_s:.4g} s: is it overloaded? timeout= allows it more")

    def _shown(self, text: str) -> str:
        """Return a server's own words on one line, shortened and without the key."""
        line = " ".join(text.split())
        line = line.replace(self._key, "***") if self._key else line
        return line if len(line) <= _SHOWN_CHARS else f"{line[:_SHOWN_CHARS]}.."
