"""Stores as their servers answer: S3, Azure and GCS, through the clients that users install."""

import os
import subprocess
import sys
import time

import pytest

from launch.inputs import listing
from launch.job import clients, store
from tests.cluster import servers, stores

pytestmark = [
    pytest.mark.cluster,
    # The clients' own: large bodies, connections that are closed late.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", params=servers.KINDS)
def server(request):
    """A running server, which this process's client finds."""
    stores.preload(request.param)
    with servers.started(request.param) as found:
        before = dict(os.environ)
        os.environ.update(found.variables())
        clients._opened.cache_clear()
        yield found
        os.environ.clear()
        os.environ.update(before)
        clients._opened.cache_clear()


@pytest.fixture
def folder(server, request):
    """An address of this test alone; the network is whole before and after."""
    server.plan()
    yield store.path(server.address(request.node.originalname))
    server.plan()


def test_the_first_of_two_objects_stands(server, folder):
    where = folder / "run.json"
    assert not where.is_file()
    assert store.put(where, b"one", once=True)
    assert not store.put(where, b"two", once=True)
    assert where.read_bytes() == b"one"
    assert store.put(where, b"three")
    assert where.is_file()
    assert not folder.is_file()
    assert folder.is_dir()
    assert not (folder / "none").is_dir()
    assert store.look(where).size == 5
    assert store.names(folder) == ["run.json"]
    assert store.names(folder / "none") == []
    assert store.remove(where)
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        store.read(where)


def test_more_than_a_page_of_objects_is_listed(server, folder):
    key = folder.text.partition(f"{servers.BUCKET}/")[2]
    want = sorted(f"{i % 3}/{i:04d}.png" for i in range(1150))
    for name in [*want, "3/note.txt", "0/._hidden.png"]:
        server.write(f"{key}/{name}", b"x")
    found = listing.scan(str(folder))
    assert [item.path for item in found.items] == want
    assert {item.size for item in found.items} == {1}
    assert sorted(store.names(folder)) == ["0", "1", "2", "3"]
    assert len(store.names(folder / "1")) == 383
    some = listing.scan(f"{folder}/1/00*.png").items
    assert [item.path for item in some] == [n[2:] for n in want if n.startswith("1/00")]
    assert len(listing.scan(f"{folder}/**/*7.png").items) == 115
    # What a listing says of an object is what the object says of itself.
    assert store.look(folder / want[5]).version == found.items[5].changed


def test_more_than_fits_into_memory_is_put_in_parts(server, folder, monkeypatch):
    size = 130 << 20  # S3's client splits from 100 MiB on
    if server.kind == "s3":
        monkeypatch.setattr(store, "SPOOL", 8 << 20)
    piece = os.urandom(1 << 20)
    where = folder / "large.npz"
    server.plan()
    assert store.put_parts(where, (piece for _ in range(size >> 20)))
    assert server.plan()["seen"] >= 3
    assert store.look(where).size == size
    with where.open("rb") as file:
        file.seek(size - 5)
        assert file.read() == piece[-5:]
    # fake-gcs-server knows no condition for an upload in parts; runs put such objects without one.
    if server.kind != "gs":
        assert not store.put_parts(where, (piece for _ in range(size >> 20)), once=True)
    assert store.put_parts(folder / "new.npz", (piece for _ in range(size >> 20)), once=True)


@pytest.mark.parametrize("way", ["503", "429", "500", "cut", "lost", "half", "slow"])
def test_what_passes_is_waited_for(server, folder, way):
    store.put(folder / "there", b"a" * 1000)
    calls = [
        (lambda: store.put(folder / "there", b"a" * 1000), True),
        (lambda: store.read(folder / "there"), b"a" * 1000),
        (lambda: store.names(folder), ["there"]),
        (lambda: (folder / "there").is_file(), True),
    ]
    # Azure's client waits 15 seconds before it asks a busy store again.
    for call, want in calls[:1] if server.kind == "az" and way in ("503", "500") else calls:
        server.plan(what=way, at=0)
        assert call() == want
        assert server.plan()["spoiled"] == {way: 1}


@pytest.mark.slow
def test_a_connection_that_says_nothing_is_given_up(server, folder, monkeypatch):
    store.put(folder / "there", b"a")
    monkeypatch.setattr(clients, "SILENT", 3)
    clients._opened.cache_clear()
    server.plan(what="stall", at=0)
    begin = time.monotonic()
    assert store.read(folder / "there") == b"a"
    assert time.monotonic() - begin < 60
    clients._opened.cache_clear()


@pytest.mark.parametrize("way", ["403", "skew"])
def test_what_is_refused_ends_at_once_and_says_so(server, folder, way):
    if (server.kind, way) == ("gs", "skew"):
        pytest.skip("gcsfs asks for half a minute whether a 401 is meant")
    for call in (
        lambda: store.put(folder / "a", b"a", once=True),
        lambda: store.read(folder / "a"),
        lambda: store.names(folder),
        lambda: (folder / "a").is_file(),
    ):
        server.plan(what=way, at=0, every=True)
        with pytest.raises(PermissionError, match="check credentials, rights on the bucket and"):
            call()
        assert server.plan()["seen"] <= 3


def launched(server, *arguments, **variables):
    """Runs a launcher as a user does; returns its code and its last line."""
    done = subprocess.run(
        [sys.executable, "-m", "launch.masks", "--model=demo", "--steps=2", *arguments],
        cwd=servers.ROOT,
        env={**os.environ, **server.variables(), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stderr


def test_a_run_with_wrong_credentials_ends_with_one_line(server, folder):
    server.plan(what="403", at=0, every=True)
    code, said = launched(server, f"--out={folder}")
    assert code == 2, said
    assert "check credentials" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert max(map(len, said.splitlines())) < 400


@pytest.mark.slow
def test_a_store_that_stays_busy_is_given_up_and_ends_a_run_with_one_line(
    server, folder, monkeypatch
):
    monkeypatch.setenv(clients.PATIENCE, "10")
    for call in (
        lambda: store.put(folder / "a", b"a", once=True),
        lambda: store.read(folder / "a"),
        lambda: store.names(folder),
    ):
        server.plan(what="503", at=0, every=True)
        begin = time.monotonic()
        with pytest.raises(clients.Busy, match="PERTURB_STORE_SECONDS=10 limits"):
            call()
        # Azure's and GCS's clients take the better part of a minute for one call.
        assert time.monotonic() - begin < (60 if server.kind == "s3" else 120)
        assert server.plan()["spoiled"]["503"] > 1
    server.plan(what="503", at=0, every=True)
    code, said = launched(server, f"--out={folder}")
    assert code == 2, said
    line = said.splitlines()[-1]
    assert "busy for" in line
    assert line.endswith("; the same command continues")
    assert str(folder) in line
    assert len(line) < 300
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_run_in_a_store_is_continued_and_read_back(server, folder):
    from launch import results

    code, said = launched(server, f"--out={folder}", "--evidence=none")
    assert code == 0, said
    assert len(results.load(str(folder))["ids"]) == 8
    names = sorted(server.list(folder.text.partition(f"{servers.BUCKET}/")[2]))
    code, said = launched(server, f"--out={folder}", "--evidence=none")
    assert code == 0, said
    assert sorted(server.list(folder.text.partition(f"{servers.BUCKET}/")[2])) == names
    code, said = launched(server, f"--out={folder}", "--evidence=none", "--seed=1")
    assert code == 2
    assert "holds another run" in said.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", servers.KINDS)
def test_kills_and_faults_lose_nothing(kind):
    """A short form of `python -m tests.cluster.stores`, in a process that has no client open."""
    command = [sys.executable, "-m", "tests.cluster.stores", f"--kind={kind}", "--step=24"]
    some = ["--random=3", "--told=1", "--races=4", "--hosts=1", "--mixed=1"]
    with servers.started(kind):  # skips where it is not installed
        pass
    done = subprocess.run([*command, *some], cwd=servers.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
