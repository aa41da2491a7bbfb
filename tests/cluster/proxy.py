"""A proxy between a store's client and its server that spoils what it is told to.

  python -m tests.cluster.proxy --port=5201 --to=5101 --kind=s3

Requests are numbered from 0 since the last plan. A plan is JSON sent to `/-/plan`: `{"what":
"503", "at": 3, "every": false}` spoils request 3 (with `every` all from there on), and `{"what":
"mixed", "share": 0.2, "seed": 1}` one in five, each in another way. `GET /-/plan` says how many
requests were seen and spoiled. What there is: see `WAYS`.
"""

import argparse
import asyncio
import email.utils
import json
import random
import re
import time

# Answers as the three services document them: (status line, body) for a status asked of a kind.
XML = '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{}</Code><Message>{}</Message></Error>'
CODES = {
    "s3": {
        "503": ("503 Slow Down", XML.format("SlowDown", "Please reduce your request rate.")),
        "429": ("429 Too Many Requests", XML.format("TooManyRequests", "Reduce your rate.")),
        "500": ("500 Internal Server Error", XML.format("InternalError", "An error occurred.")),
        "403": ("403 Forbidden", XML.format("AccessDenied", "Access Denied")),
        "skew": (
            "403 Forbidden",
            XML.format(
                "RequestTimeTooSkewed",
                "The difference between the request time and the current time is too large.",
            ),
        ),
    },
    "az": {
        "503": ("503 Server Busy", XML.format("ServerBusy", "Ingress is over the account limit.")),
        "429": ("429 Too Many Requests", XML.format("TooManyRequests", "Too many requests.")),
        "500": ("500 Internal Server Error", XML.format("InternalError", "An error occurred.")),
        "403": (
            "403 Forbidden",
            XML.format(
                "AuthorizationPermissionMismatch",
                "This request is not authorized to perform this operation using this permission.",
            ),
        ),
        "skew": (
            "403 Server failed to authenticate the request",
            XML.format("AuthenticationFailed", "Request date header too old."),
        ),
    },
    "gs": {
        "503": ("503 Service Unavailable", "We encountered an internal error. Please try again."),
        "429": ("429 Too Many Requests", "The rate of change requests is too high."),
        "500": ("500 Internal Server Error", "We encountered an internal error."),
        "403": ("403 Forbidden", "The account does not have storage.objects.create access."),
        "skew": ("401 Unauthorized", "Invalid Credentials"),
    },
}
# Beside the statuses: the request cut in its middle; done, but the answer lost; half of the answer;
# an answer in small pieces over two seconds; a connection that stays open and says nothing.
CUTS = ("cut", "lost", "half", "slow", "stall")
WAYS = ("503", "429", "500", *CUTS)
MIXED = ("503", "429", "500", "cut", "lost", "half")  # those that a client is over with at once
SLOW = 2.0  # seconds
SKEW = 900.0  # seconds that S3 lets a clock be wrong


def refusal(kind, what):
    """The answer of a service that refuses."""
    status, text = CODES[kind][what]
    if kind == "gs":
        text = json.dumps({"error": {"code": int(status[:3]), "message": text}})
    type = "application/json" if kind == "gs" else "application/xml"
    code = re.search(r"<Code>(\w+)", text)
    more = f"x-ms-error-code: {code[1]}\r\n" if kind == "az" and code else ""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {type}\r\n{more}Content-Length: {len(text)}\r\n"
    return (head + "Connection: close\r\n\r\n" + text).encode()


class Proxy:
    """Forwards each request on a connection of its own, so that what it spoils is one request."""

    def __init__(self, to, kind, clock=0.0):
        self.to, self.kind, self.clock = to, kind, clock
        self.set({})

    def set(self, plan):
        self.plan, self.seen, self.spoiled = plan, 0, {}
        # Anew for each plan, so that a plan spoils the same requests each time.
        self.rng = random.Random(plan.get("seed", 0))

    def choose(self):
        """What is done to the next request; "" for nothing."""
        number, self.seen = self.seen, self.seen + 1
        what = self.plan.get("what", "")
        if what == "mixed":
            what = self.rng.choice(MIXED) if self.rng.random() < self.plan["share"] else ""
        elif "at" in self.plan:
            hit = number >= self.plan["at"] if self.plan.get("every") else number == self.plan["at"]
            what = what if hit else ""
        if what:
            self.spoiled[what] = self.spoiled.get(what, 0) + 1
        return what

    async def serve(self, reader, writer):
        try:
            head, body = await request(reader, writer)
            if not head:
                return
            # Not counted: it is no request of the client's.
            if head.split(b" ", 2)[1] == b"/-/plan":
                await self.admin(head, body, writer)
            else:
                await self.spoil(self.choose(), head, body, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def admin(self, head, body, writer):
        if head.startswith(b"POST"):
            self.set(json.loads(body))
        text = json.dumps({"seen": self.seen, "spoiled": self.spoiled}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
        await writer.drain()

    async def spoil(self, what, head, body, writer):
        if self.plan.get("what") == "clock":
            what = "skew" if skewed(head, self.plan["by"]) else ""
        if what in CODES[self.kind]:
            answer = refusal(self.kind, what)
            # An answer to HEAD has no body.
            if head.startswith(b"HEAD"):
                answer = answer[: answer.index(b"\r\n\r\n") + 4]
            writer.write(answer)
            return await writer.drain()
        if what == "stall":
            return await asyncio.sleep(self.plan.get("seconds", 3600))
        server, to = await asyncio.open_connection("127.0.0.1", self.to)
        try:
            to.write(closing(head))
            to.write(body[: len(body) // 2] if what == "cut" else body)
            await to.drain()
            if what == "cut":
                return None
            answer = await server.read(-1)
        finally:
            to.close()
        # The server has done it, and only the proxy knows.
        if what == "lost":
            return None
        if what == "half":
            # The head is whole and promises all of the body.
            start = answer.find(b"\r\n\r\n") + 4
            answer = answer[: start + (len(answer) - start) // 2]
        pieces = 8 if what == "slow" else 1
        for i in range(pieces):
            if pieces > 1:
                await asyncio.sleep(SLOW / pieces)
            writer.write(answer[i * len(answer) // pieces : (i + 1) * len(answer) // pieces])
            await writer.drain()
        return None


async def request(reader, writer):
    """Reads one request: head and body, which is what the client sent even where it is chunked."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b"", b""
    # A client that asks first waits with its body for this.
    if re.search(rb"(?im)^expect: 100-continue\r$", head):
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
    length = re.search(rb"(?im)^content-length: *(\d+)\r$", head)
    if length:
        return head, await reader.readexactly(int(length[1]))
    body = b""
    if re.search(rb"(?im)^transfer-encoding: chunked\r$", head):
        while not body.endswith(b"0\r\n\r\n"):
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            body += line + await reader.readexactly(size + 2)
    return head, body


def closing(head):
    """The head for the server: it closes after its answer, and has no 100 to send."""
    head = re.sub(rb"(?im)^(connection|expect): .*\r\n", b"", head)
    return head[:-2] + b"Connection: close\r\n\r\n"


def skewed(head, by):
    """Whether the time of a request is too far from a clock that is `by` seconds wrong."""
    stamp = re.search(rb"(?im)^x-amz-date: (\w+)\r$", head)
    if stamp:
        sent = time.mktime(time.strptime(stamp[1].decode(), "%Y%m%dT%H%M%SZ")) - time.timezone
    else:
        stamp = re.search(rb"(?im)^x-ms-date: (.+)\r$", head)
        if not stamp:
            return True
        sent = email.utils.parsedate_to_datetime(stamp[1].decode()).timestamp()
    return abs(time.time() + by - sent) > SKEW


async def run(port, to, kind):
    proxy = Proxy(to, kind)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", port, limit=1 << 22)
    async with server:
        await server.serve_forever()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--to", type=int, required=True)
    parser.add_argument("--kind", choices=list(CODES), required=True)
    given = parser.parse_args()
    asyncio.run(run(given.port, given.to, given.kind))


if __name__ == "__main__":
    main()
