"""Who may ask: this machine's own page, with the token, and no more bytes than a picture has.

A page of another site that is open in the same browser can send requests here. It knows neither the
token nor may it name us as its origin; and a name that it has pointed to 127.0.0.1 shows in the
Host header.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

from perturb.types import Record

__all__ = ["MOST", "Guard"]

MOST = 32 * 2**20  # bytes of a picture
ASKED = 2**20  # bytes of every other request
Send = Callable[[Record], Awaitable[None]]
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        b"connect-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; "
        b"base-uri 'none'; form-action 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


class TooLarge(Exception):
    """The body of a request is longer than it may be."""


class Guard:
    """An ASGI application around another, which it hides from whoever may not ask.

    Args:
      app: asked only by those who may.
      token: of this studio.
    """

    def __init__(self, app: Any, token: str):
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Record, receive: Any, send: Send) -> None:
        """Serves a request, or refuses it in a line."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        refusal = self._refusal(scope, headers)
        if refusal:
            await _answer(send, *refusal)
            return
        most = MOST if scope["path"] == "/api/pictures" else ASKED
        length = headers.get(b"content-length", b"0")
        # What is announced is refused before a byte of it is read.
        if not length.isdigit() or int(length) > most:
            await _answer(send, 413, f"too large: at most {most >> 20} MiB are taken")
            return
        seen, begun = 0, False

        async def counted() -> Record:
            nonlocal seen
            message: Record = await receive()
            seen += len(message.get("body", b""))
            # And what is not announced, or wrongly, is counted as it comes.
            if seen > most:
                raise TooLarge
            return message

        async def guarded(message: Record) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message = {**message, "headers": [*message["headers"], *_HEADERS]}
            await send(message)

        try:
            await self._app(scope, counted, guarded)
        except TooLarge:
            if not begun:
                await _answer(send, 413, f"too large: at most {most >> 20} MiB are taken")

    def _refusal(self, scope: Record, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        host = headers.get(b"host", b"")
        port = str((scope.get("server") or ("", 0))[1]).encode()
        # A name that a stranger has pointed to 127.0.0.1 shows here: DNS rebinding.
        if host not in (b"127.0.0.1:" + port, b"localhost:" + port):
            return 403, "refused: the studio answers to 127.0.0.1 alone"
        origin = headers.get(b"origin")
        if origin is not None and origin != b"http://" + host:
            return 403, "refused: the request comes from another page"
        # The page's own files hold no secret, and a script tag cannot send a header.
        if scope["path"].startswith("/static/"):
            return None
        query = parse_qs(scope["query_string"].decode("latin-1"))
        given = headers.get(b"x-studio-token") or query.get("token", [""])[0].encode()
        # In constant time: how many characters are right must not show.
        if not hmac.compare_digest(given, self._token):
            return 403, "the token is missing: open the address that the studio has printed"
        return None


async def _answer(send: Send, status: int, said: str) -> None:
    body = said.encode() + b"\n"
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *_HEADERS,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
