"""Runs whose pictures and results lie in a store of objects."""

import errno
import json
import pathlib
import types

import fsspec
import numpy as np
import PIL.Image
import pytest

from launch import results
from launch.inputs import images, listing
from launch.job import clients, commit, store
from tests.launch import objects
from tests.launch.test_killing import killing


@pytest.fixture
def memory():
    """An empty store in memory."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    # The store in memory belongs to the process: other tests' folders would be found.
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def copied(folder, address):
    """Copies a folder of this disk into a store; returns the address."""
    for path in folder.rglob("*"):
        if path.is_file():
            store.put(address / str(path.relative_to(folder)), path.read_bytes())
    return address


def test_addresses_are_told_from_paths_and_kinds_that_are_none_are_refused(tmp_path):
    assert store.path("a/b") == pathlib.Path("a/b")
    assert store.path(f"file://{tmp_path}") == tmp_path
    where = store.path("memory://bucket/a.b/c.npz")
    # A dot in a folder's name is no suffix.
    assert (where.name, where.suffix, str(where.parent)) == ("c.npz", ".npz", "memory://bucket/a.b")
    assert str(where.with_suffix(".json")) == "memory://bucket/a.b/c.json"
    assert store.join(where, "memory://x/y.png") == store.Address("memory://x/y.png")
    with pytest.raises(ValueError, match="nosuch:// is no kind of store"):
        store.path("nosuch://bucket")
    with pytest.raises(ValueError, match="results go to a disk or to a store that puts"):
        # A web server is read from and cannot be put to.
        store.writable(store.Address("http://example.com/x"))


def test_a_kind_whose_client_is_not_installed_says_what_to_install(monkeypatch):
    def missing(*_, **__):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    # Which kinds there are is looked up once a process.
    clients._opened.cache_clear()
    with pytest.raises(ValueError, match="pip install gcsfs"):
        store.path("gs://bucket")
    clients._opened.cache_clear()


def test_the_first_of_two_objects_stands_where_it_must(memory):
    where = store.path("memory://bucket/run.json")
    assert store.put(where, b"one", once=True)
    assert not store.put(where, b"two", once=True)
    assert where.read_bytes() == b"one"
    assert store.put(where, b"three")
    assert store.names(where.parent) == ["run.json"]
    assert store.names(where.parent / "none") == []
    with pytest.raises(FileNotFoundError, match="none"):
        (where.parent / "none").read_bytes()


def test_more_than_fits_into_memory_is_put_as_a_whole_or_not_at_all(memory, monkeypatch):
    # A thousand bytes count as more than fits into memory.
    monkeypatch.setattr(store, "SPOOL", 1000)
    where = store.path("memory://bucket/results.jsonl")
    assert store.put_parts(where, (b"x" * 99 for _ in range(50)))
    assert where.read_bytes() == b"x" * 4950

    def parts():
        yield b"y" * 5000
        # After more than that: a part has left the memory and must not arrive.
        raise ValueError("a damaged record")

    with pytest.raises(ValueError, match="a damaged record"):
        store.put_parts(where, parts())
    assert where.read_bytes() == b"x" * 4950


def test_only_what_lost_a_race_is_collected(memory):
    shards = store.path("memory://bucket/shards")
    commit.write_shard(shards / "000000", {"a": np.zeros(3)}, {})
    named = commit.read_record(shards / "000000")["npz"]
    # None of them lost a race: another shard's arrays, and names that only look like ours.
    kept = ["000001-0123456789ab.npz", "notes.npz", f".tmp-{'0' * 8}-{'a' * 32}", "photo.png"]
    for name in [*kept, "000000-ba9876543210.npz"]:
        store.put(shards / name, b"x")
    # Without the records nobody knows which of two arrays was committed.
    assert commit.collect(shards) == 0
    assert commit.collect(shards, {0: named}) == 1
    assert sorted(store.names(shards)) == sorted([*kept, named, "000000.json"])


def test_a_store_is_searched_like_a_folder(memory, photos):
    photos.joinpath("notes.txt").write_text("no")
    photos.joinpath("._a.png").write_bytes(b"no")
    (photos / "sub").mkdir()
    photos.joinpath("sub", "e.PNG").write_bytes(b"e")
    root = copied(photos, store.path("memory://bucket/photos"))
    found = listing.scan(str(root))
    assert found.root == "memory://bucket/photos"
    want = ["a_red.png", "b_green.png", "c_blue.png", "d_red.png", "sub/e.PNG"]
    assert [item.path for item in found.items] == want
    assert [i.size for i in found.items] == [(photos / p).stat().st_size for p in want]
    globbed = listing.scan("memory://bucket/photos/?_red.png")
    assert [i.path for i in globbed.items] == ["a_red.png", "d_red.png"]
    assert listing.scan("memory://bucket/photos/a_red.png").items == found.items[:1]
    text = "path,target\nb_green.png,1\nmemory://bucket/photos/sub/e.PNG,2\nnone.png,0\n"
    store.put(root / "list.csv", text.encode())
    listed = listing.scan(f"{root}/list.csv").items
    # An address of its own in a list is taken as it is.
    assert [(i.path.rpartition("/")[2], i.size >= 0, i.target) for i in listed] == [
        ("b_green.png", True, "1"),
        ("e.PNG", True, "2"),
        ("none.png", False, "0"),
    ]
    for nothing in ("memory://bucket/none", "memory://bucket/*.none"):
        with pytest.raises(ValueError, match=r"no (picture|file)"):
            listing.scan(nothing)


def test_large_objects_are_not_fetched(memory, monkeypatch):
    store.put(store.path("memory://bucket/a.png"), bytes(2000))
    # A small limit in place of a large object.
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    with pytest.raises(images.BadImage, match="larger than"):
        images.fetch("memory://bucket/a.png")


@pytest.mark.slow
def test_a_run_in_a_store_is_the_run_on_a_disk(
    memory, launch_masks, photos, toy, instant, tmp_path
):
    (photos / "e_broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really")
    copied(photos, store.path("memory://bucket/photos"))
    # The disk is the reference: the same bytes, wherever they lie.
    disk = tmp_path / "disk"
    code, err = launch_masks(*toy, f"--images={photos}", f"--out={disk}")
    assert code == 0, err
    arguments = [*toy, "--images=memory://bucket/photos", "--out=memory://bucket/runs/one"]
    code, err = launch_masks(*arguments)
    assert code == 0, err
    out = store.path("memory://bucket/runs/one")
    names = [p.relative_to(disk) for p in disk.rglob("*") if p.is_file()]
    assert len(memory.find("/bucket/runs")) == len(names)
    for name in names:
        if name.name not in ("run.json", "manifest.jsonl"):  # where the pictures were
            assert (out / str(name)).read_bytes() == (disk / name).read_bytes(), name
    ours, theirs = results.load(str(out)), results.load(disk)
    np.testing.assert_array_equal(ours["masks"], theirs["masks"])
    assert ours["rows"] == theirs["rows"]
    # Again: nothing is computed; with other settings: refused.
    seen = len(instant)
    assert launch_masks(*arguments)[0] == 0
    assert len(instant) == seen
    code, err = launch_masks(*arguments, "--seed=1")
    assert code == 2
    assert "--out=memory://bucket/runs/one holds another run" in err
    # What is not committed is neither read nor in the way.
    # A record taken away, its arrays left: as if the process had died between the two.
    (out / "shards" / "000000.json").unlink()
    assert len(results.load(str(out))["ids"]) == 0
    assert launch_masks(*arguments)[0] == 0
    assert (out / "results.jsonl").read_bytes() == (disk / "results.jsonl").read_bytes()


@pytest.mark.slow
def test_the_embedded_pictures_go_to_the_store_too(memory, launch_masks, instant):
    code, err = launch_masks("--out=memory://bucket/demo", "--evidence=none", "--steps=2")
    assert code == 0, err
    assert "bucket/demo/pictures/demo" in str(memory.find("/bucket"))
    assert store.path("memory://bucket/demo/report/index.html").is_file()
    assert len(results.load("memory://bucket/demo")["ids"]) == 8


def test_a_store_that_refuses_ends_with_one_line(memory, launch_masks, photos, toy, monkeypatch):
    def forbidden(*_, **__):
        # As a client says it, in two lines: the second has what a person needs.
        raise OSError("Forbidden: bucket/run\nno permission storage.objects.create")

    monkeypatch.setattr(type(memory), "pipe_file", forbidden)
    # Tried again as often as ever, without the waits.
    monkeypatch.setattr(
        store.faults.retried, "__kwdefaults__", {**store.faults.retried.__kwdefaults__, "wait": 0.0}
    )
    code, err = launch_masks(*toy, f"--images={photos}", "--out=memory://bucket/run")
    assert code == 2
    assert "no permission storage.objects.create" in err.splitlines()[-1]


@pytest.fixture
def clock(monkeypatch):
    """A clock that a call and a wait move; `(move, waits)`."""
    now, waits = [0.0], []

    def move(seconds):
        now[0] += seconds

    def sleep(seconds):
        waits.append(seconds)
        move(seconds)

    there = types.SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(clients, "time", there)
    monkeypatch.setitem(clients.asked.__kwdefaults__, "sleep", sleep)
    return move, waits


def busy(status):
    """An error as the clients raise it for a status."""
    error = Exception("Please reduce your request rate")
    if status == errno.EBUSY:
        error = OSError(status, "Please reduce your request rate")
    elif status == "cause":  # of s3fs
        answer = {"ResponseMetadata": {"HTTPStatusCode": 503}}
        error.__cause__ = type("ClientError", (Exception,), {"response": answer})()
    else:  # of gcsfs as a text or number, of Azure's client as a number
        error.code = status
    return error


@pytest.mark.parametrize("status", [errno.EBUSY, "cause", "503", 503, 429, 500])
def test_a_busy_store_is_asked_for_two_minutes_and_no_longer(memory, clock, monkeypatch, status):
    move, waits = clock
    calls = []

    def call(_):
        calls.append(1)
        move(7)  # as long as a client takes to give up
        raise busy(status)

    with pytest.raises(clients.Busy, match="PERTURB_STORE_SECONDS=120 limits") as end:
        clients.asked("memory://bucket/run", call)
    # Eight calls of 7 s and these waits are 101.5 s: another would end after 123.5 s.
    assert waits == [0.5, 1, 2, 4, 8, 15, 15]
    assert len(calls) == 8
    assert (end.value.errno, end.value.filename) == (errno.EBUSY, "memory://bucket/run")
    assert "busy for 102 s (Please reduce your request rate)" in end.value.strerror
    monkeypatch.setenv(clients.PATIENCE, "0")
    calls.clear()
    with pytest.raises(clients.Busy, match="PERTURB_STORE_SECONDS=0 limits"):
        clients.asked("memory://bucket/run", call)
    assert len(calls) == 1
    for wrong in ("soon", "nan", "-1", "inf", ""):
        monkeypatch.setenv(clients.PATIENCE, wrong)
        with pytest.raises(ValueError, match=r"PERTURB_STORE_SECONDS='.*': expected"):
            clients.asked("memory://bucket/run", call)


def test_a_store_that_is_busy_for_a_while_is_waited_for(memory, clock):
    codes = [503] * 4

    def call(_):
        if codes:
            raise busy(codes.pop())
        return "there"

    assert clients.asked("memory://bucket/run", call) == "there"
    assert clock[1] == [0.5, 1, 2, 4]


def test_a_picture_is_not_to_blame_for_a_busy_store(memory, monkeypatch):
    monkeypatch.setenv(clients.PATIENCE, "0")
    store.put(store.path("memory://bucket/list.csv"), b"path\na.png\n")

    def throttled(*_, **__):
        raise busy(503)

    monkeypatch.setattr(type(memory), "info", throttled)
    # A row of errors.jsonl, or of a missing file, would stay when the store works again.
    with pytest.raises(clients.Busy):
        images.fetch("memory://bucket/a.png")
    with pytest.raises(clients.Busy):
        listing.scan("memory://bucket/list.csv")


def test_a_store_that_stays_busy_ends_a_job_with_one_line(
    memory, launch_masks, photos, toy, monkeypatch
):
    def throttled(*_, **__):
        raise busy(errno.EBUSY)

    monkeypatch.setattr(type(memory), "pipe_file", throttled)
    monkeypatch.setenv(clients.PATIENCE, "0")
    code, err = launch_masks(*toy, f"--images={photos}", "--out=memory://bucket/run")
    assert code == 2
    line = err.splitlines()[-1]
    assert "busy for 0 s (Please reduce your request rate)" in line
    assert line.endswith("; the same command continues")
    assert len(line) < 300


def test_a_page_of_several_processes_and_a_picture_that_is_gone(
    launch_masks, photos, toy, instant, tmp_path, monkeypatch
):
    """On a store that outlives a process: two shares of one run, and a picture that is gone."""
    for i in range(16):
        PIL.Image.new("RGB", (33, 33), (250, 5 * i, 0)).save(photos / f"f{i:02d}.png")
    monkeypatch.setattr(store, "WHOLE", (*store.WHOLE, objects.SCHEME))
    text = "path\n" + "".join(f"{p.name}\n" for p in sorted(photos.iterdir())) + "none.png\n"
    (photos / "list.csv").write_text(text)
    out = tmp_path / "out"
    arguments = [*toy, f"--images={objects.address(photos / 'list.csv')}"]
    arguments.append(f"--out={objects.address(out)}")
    # The last share first: only whoever sees all shards writes the page.
    for k in (1, 0):
        code, err = launch_masks(*arguments, f"--shard={k}/2")
        assert code == 0, err
        assert (out / "report" / "index.html").exists() == (k == 0)
    errors = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    assert [(e["id"], e["stage"]) for e in errors] == [("none.png", "read")]
    assert len(results.load(str(objects.address(out)))["ids"]) == 20


@pytest.mark.slow
def test_a_job_in_a_store_that_is_killed_or_fails_anywhere_ends_the_same():
    counts = killing("--store", "--step=19", "--random=4", "--told=2", "--races=9", "--hosts=2")
    runs = {n: v for n, v in counts.items() if n.endswith(": runs")}
    wrong = {n: v for n, v in counts.items() if ": " in n and n not in runs and v}
    assert not wrong
    assert runs["killed at a call: runs"] >= 5
    assert runs["lost answer once: runs"] >= 3
    assert runs["client for good: runs"] >= 3
    assert runs["races: runs"] == 9
