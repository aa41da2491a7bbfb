"""A studio of the embedded world, served in this process on a port of its own."""

import contextlib
import http.client
import json
import threading
import time
from typing import NamedTuple

import pytest

TOKEN = "token-of-the-tests"


class Served(NamedTuple):
    """A studio that answers on 127.0.0.1."""

    port: int
    url: str
    studio: object

    def request(self, method, path, body=None, *, token=TOKEN, **headers):
        """Status and body of one request."""
        # Long, for a first question compiles.
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        given = {"x-studio-token": token} if token else {}
        with contextlib.closing(connection):
            connection.request(method, path, body, given | headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def ask(self, name, **asked):
        """What a quick question gives."""
        status, body = self.request("POST", f"/api/ask/{name}", json.dumps(asked))
        assert status == 200, body
        return json.loads(body)

    def work(self, name, **asked):
        """All lines of long work."""
        status, body = self.request("POST", f"/api/long/{name}", json.dumps(asked))
        assert status == 200, body
        return [json.loads(line) for line in body.splitlines()]


@pytest.fixture(scope="session")
def served():
    """The embedded world, served."""
    pytest.importorskip("starlette")
    uvicorn = pytest.importorskip("uvicorn")
    from launch.studio import __main__ as main
    from launch.studio import app, world

    shown = world.load()
    guarded, studio = app.build(shown, TOKEN)
    # A port that the kernel calls free.
    listening = main.listen(0)
    server = uvicorn.Server(main.config(guarded))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    # Not before: a request to a server that is not listening would be refused.
    while not server.started:
        time.sleep(0.01)
    port = listening.getsockname()[1]
    yield Served(port, f"http://127.0.0.1:{port}/?token={TOKEN}", studio)
    server.should_exit = True
    thread.join(10)
    shown.decoders.close()
