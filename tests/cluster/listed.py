"""Memory and time of listing a million objects of a store.

  python -m tests.cluster.listed --kind=s3 --keys=1000000

No emulator holds as many: a server of our own answers the three listing protocols, a thousand
made-up objects a page, to the client that users install. Prints one JSON object; the memory is the
largest that the listing process ever held, all of Python and the client included.
"""

import argparse
import hashlib
import http.server
import json
import multiprocessing
import os
import resource
import sys
import time
import urllib.parse

PAGE = 1000
XML = '<?xml version="1.0" encoding="UTF-8"?>\n'


def key(i):
    """The name of an object, in the order of the numbers."""
    # Padded, so that the order of names is that of numbers.
    return f"photos/{i // 10_000:04d}/{i:08d}.png"


def objects(start, stop):
    """Name, size and a hash of 32 digits of each."""
    for i in range(start, stop):
        yield key(i), 10_000 + i % 7, hashlib.md5(str(i).encode()).hexdigest()


class Listing(http.server.BaseHTTPRequestHandler):
    """Answers the requests for pages of S3, GCS and Azure."""

    protocol_version = "HTTP/1.1"
    keys = 0

    def do_HEAD(self):
        self.answer(404, b"", "text/plain")

    def do_GET(self):
        path, _, query = self.path.partition("?")
        asked = dict(urllib.parse.parse_qsl(query))
        mark = asked.get("continuation-token") or asked.get("pageToken") or asked.get("marker")
        start = int(mark or 0)
        stop = min(start + PAGE, self.keys)
        following = "" if stop == self.keys else str(stop)
        if "/storage/v1/b/" in path and path.endswith("/o"):
            items = [
                {"name": n, "size": str(s), "md5Hash": h[:24], "generation": "1", "kind": "x" * 400}
                for n, s, h in objects(start, stop)
            ]
            page = {"kind": "storage#objects", "items": items}
            page |= {"nextPageToken": following} if following else {}
            return self.answer(200, json.dumps(page).encode(), "application/json")
        if asked.get("list-type") == "2":
            text = "".join(
                f"<Contents><Key>{n}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f'<ETag>"{h}"</ETag><Size>{s}</Size><StorageClass>STANDARD</StorageClass>'
                "</Contents>"
                for n, s, h in objects(start, stop)
            )
            more = (
                f"<NextContinuationToken>{following}</NextContinuationToken>" if following else ""
            )
            cut = str(bool(following)).lower()
            text = (
                f"<ListBucketResult><IsTruncated>{cut}</IsTruncated>{more}{text}</ListBucketResult>"
            )
            return self.answer(200, (XML + text).encode(), "application/xml")
        if asked.get("comp") == "list":
            text = "".join(
                f"<Blob><Name>{n}</Name><Properties><Content-Length>{s}</Content-Length>"
                f"<Etag>0x{h[:15]}</Etag><BlobType>BlockBlob</BlobType></Properties></Blob>"
                for n, s, h in objects(start, stop)
            )
            text = f"<Blobs>{text}</Blobs><NextMarker>{following}</NextMarker>"
            text = f'<EnumerationResults ContainerName="masks">{text}</EnumerationResults>'
            return self.answer(200, (XML + text).encode(), "application/xml")
        return self.answer(404, b"", "text/plain")

    def answer(self, status, body, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def serve(keys, ready):
    Listing.keys = keys
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listing)
    ready.send(server.server_port)
    server.serve_forever()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=("s3", "az", "gs"), required=True)
    parser.add_argument("--keys", type=int, default=1_000_000)
    given = parser.parse_args()
    # The server in a process of its own: its memory is not the listing's.
    here, there = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(given.keys, there), daemon=True
    )
    server.start()
    from launch.inputs import listing
    from tests.cluster import servers

    store = servers.Server(given.kind, 0, here.recv())
    os.environ.update(store.variables())
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    found = listing.scan(store.address("photos"))
    digest = found.sha256()
    seconds, most = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    server.kill()
    good = len(found.items) == given.keys and found.items[-1].path == key(given.keys - 1)[7:]
    said = {"kind": given.kind, "keys": len(found.items), "right": good, "mb": round(most / 1024)}
    said |= {"mb before": round(before / 1024), "s": round(seconds, 1), "sha256": digest[:8]}
    print(json.dumps(said))
    sys.exit(not good)


if __name__ == "__main__":
    main()
