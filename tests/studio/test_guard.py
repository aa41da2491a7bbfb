"""Who may ask the studio, and how much: every refusal is one line, and the application behind is
not reached.
"""

import asyncio

import pytest

from launch.studio.guard import ASKED, MOST, Guard

TOKEN = "right-token"


async def application(scope, receive, send):
    """Reads all of the body and says how long it was."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def asked(path="/", *, host=b"127.0.0.1:8000", query=b"", body=(b"",), **headers):
    """Status, headers and body of one request."""
    given = [(b"host", host)] if host else []
    given += [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
    scope = {
        "type": "http",
        "path": path,
        "query_string": query,
        "headers": given,
        "server": ("127.0.0.1", 8000),
    }
    parts = list(body)
    sent = []

    async def receive():
        # In parts, as a server hands over a body that comes slowly.
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(application, TOKEN)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


GOOD = {"x_studio_token": TOKEN.encode()}


def test_the_token_opens_in_the_address_and_in_the_header():
    assert asked(query=b"token=right-token")[0] == 200
    assert asked("/api/world", **GOOD)[0] == 200


# No token, an empty one, a wrong one, a longer one, and bytes that are no text.
@pytest.mark.parametrize(
    "query", [b"", b"token=", b"token=wrong", b"token=right-token2", b"token=\xff"]
)
def test_without_the_token_nothing_is_served(query):
    status, _, body = asked(query=query)
    assert status == 403
    assert body.decode().startswith("the token is missing")
    assert b"right-token" not in body


# A name that resolves to this machine is how a foreign page would get past the browser's rules.
@pytest.mark.parametrize(
    "host", [b"evil.example", b"127.0.0.1", b"127.0.0.1:8001", b"", b"evil.example:8000"]
)
def test_another_name_for_this_machine_is_refused(host):
    assert asked(host=host, **GOOD)[0] == 403


# Another site, a file or a sandbox, another scheme and another port are all other origins.
@pytest.mark.parametrize(
    "origin", [b"http://evil.example", b"null", b"https://127.0.0.1:8000", b"http://127.0.0.1:9"]
)
def test_another_page_is_refused_even_with_the_token(origin):
    assert asked(origin=origin, **GOOD)[0] == 403
    assert asked(origin=b"http://127.0.0.1:8000", **GOOD)[0] == 200


def test_a_body_that_says_it_is_too_long_is_not_read():
    assert asked("/api/ask/score", content_length=str(ASKED + 1).encode(), **GOOD)[0] == 413
    assert asked("/api/pictures", content_length=str(MOST + 1).encode(), **GOOD)[0] == 413
    # A careless comparison with the limit lets a length below 0 through.
    assert asked("/api/pictures", content_length=b"-1", **GOOD)[0] == 413


def test_a_body_that_hides_its_length_is_cut_off():
    # A quarter of the limit: three are read, and nine without a length are stopped on the way.
    part = b"x" * 2**18
    assert asked("/api/ask/score", body=[part] * 3, **GOOD)[2] == str(3 * 2**18).encode()
    status, _, body = asked("/api/ask/score", body=[part] * 9, **GOOD)
    assert status == 413
    assert b"at most 1 MiB" in body


def test_every_answer_forbids_what_the_page_does_not_need():
    for found in (asked(**GOOD), asked(), asked("/static/studio.js")):
        assert b"default-src 'none'" in found[1][b"content-security-policy"]
        assert found[1][b"referrer-policy"] == b"no-referrer"
        assert found[1][b"cache-control"] == b"no-store"
    assert asked("/static/studio.js")[0] == 200


def test_websockets_are_not_answered():
    async def never(*_):
        raise AssertionError

    asyncio.run(Guard(application, TOKEN)({"type": "websocket", "path": "/"}, never, never))
