import errno
import hashlib
import io
import json
import os
import pathlib

import jax
import numpy as np
import pytest

from launch.inputs import listing
from launch.job import commit, disk, faults, machine, manifest, run, store
from launch.job.progress import Progress
from launch.jobs import batches


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def test_a_folder_is_searched_sorted_and_not_left(tmp_path):
    root = tmp_path / "root"
    # `._c.webp` is what macOS leaves beside a file: it ends like a picture and is none.
    touch(root, "b.png", "a.JPG", "sub/c.webp", "notes.txt", "sub/._c.webp")
    touch(tmp_path, "outside.png")
    # A link that stays inside is followed; one that leads out would take in others' files.
    (root / "inside.png").symlink_to(root / "b.png")
    (root / "outside.png").symlink_to(tmp_path / "outside.png")
    (root / "loop").symlink_to(root)
    found = listing.scan(str(root))
    assert [item.path for item in found.items] == ["a.JPG", "b.png", "inside.png", "sub/c.webp"]
    assert found.items[1].size == 5


def test_glob_file_and_list(tmp_path, monkeypatch):
    touch(tmp_path, "x/1.png", "x/2.png", "x/y/3.png", "x/4.txt")
    assert [i.path for i in listing.scan(f"{tmp_path}/x/*.png").items] == ["1.png", "2.png"]
    deep = listing.scan(f"{tmp_path}/**/*.png")
    assert [i.path for i in deep.items] == ["x/1.png", "x/2.png", "x/y/3.png"]
    # The content is the name, seven bytes.
    assert listing.scan(f"{tmp_path}/x/4.txt").items[0][:2] == ("4.txt", 7)
    monkeypatch.chdir(tmp_path)
    assert listing.scan("x/?.png").root == str(tmp_path / "x")
    (tmp_path / "list.csv").write_text(
        "path,target\nx/2.png,7\nx/1.png, 3\nx/2.png,1\nx/none.png,0\n"
    )
    rows = listing.scan("list.csv").items
    assert [(i.path, i.target) for i in rows] == [
        ("x/1.png", "3"),
        ("x/2.png", "1"),
        ("x/2.png", "7"),
        ("x/none.png", "0"),
    ]
    # A file that is not there keeps its row, without a size: it fails alone when it is read.
    assert rows[-1].size == -1


@pytest.mark.parametrize(
    "header",
    [
        "path,target",
        "path, target",
        "Path,Target",
        "path,label",
        " path ,Class",
        "image_path,class index",
    ],
)
def test_headers_as_people_write_them(tmp_path, header):
    (tmp_path / "list.csv").write_text(f"{header},width\na.png, 3,7\nb.png,tabby cat,7\n")
    rows = listing.scan(str(tmp_path / "list.csv"))
    assert [i.target for i in rows.items] == ["3", "tabby cat"]
    assert listing.target(rows, None) == "csv"


def test_a_class_column_of_another_name_is_never_lost(tmp_path):
    (tmp_path / "list.csv").write_text("path,klasse\na.png,3\n")
    with pytest.raises(
        ValueError, match=r"path,klasse.*no column is called target \(or label, class"
    ):
        listing.scan(str(tmp_path / "list.csv"))
    (tmp_path / "list.csv").write_text("path,label,class\na.png,3,4\n")
    with pytest.raises(ValueError, match="label and class may both be the target"):
        listing.scan(str(tmp_path / "list.csv"))
    (tmp_path / "list.csv").write_text("path,label,target\na.png,3,4\n")
    assert listing.scan(str(tmp_path / "list.csv")).items[0].target == "4"


@pytest.mark.parametrize(
    ("name", "text"), [("list.csv", "file\na.png\n"), ("list.csv", "path\n"), ("list.csv", "")]
)
def test_lists_that_are_none(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"list\.csv"):
        listing.scan(str(tmp_path / name))


@pytest.mark.parametrize("images", ["", "/*.none", "none", "/none.csv"])
def test_nothing_to_work_on(tmp_path, images):
    with pytest.raises((ValueError, OSError)):
        listing.scan(str(tmp_path) + images)


def test_the_manifest_names_odd_files_and_hashes_the_same(tmp_path):
    touch(tmp_path, "<b>.png", 'quote".png', "ü.png")
    found = listing.scan(str(tmp_path))
    # All else is escaped: a manifest of ASCII reads the same under any locale.
    lines = [json.loads(line) for line in found.dump().decode("ascii").splitlines()]
    assert [line["path"] for line in lines] == ["<b>.png", 'quote".png', "ü.png"]
    assert found.sha256() == listing.scan(str(tmp_path)).sha256()
    # A file changed without changing its size: only its time can tell.
    os.utime(tmp_path / "ü.png", (9, 9))
    assert found.sha256() != listing.scan(str(tmp_path)).sha256()
    found = listing.scan(str(tmp_path))
    touch(tmp_path, "more.png")
    assert found.sha256() != listing.scan(str(tmp_path)).sha256()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    store.put(path, b"old")

    def parts():
        yield b"new"
        # Half-way: one part has been handed over, the next one fails.
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        store.put_parts(path, parts())
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_shard_reads_back_and_damage_is_noticed(tmp_path):
    arrays = {"0.soft": np.arange(6, dtype=np.float16)}
    stem = tmp_path / "000000"
    assert commit.write_shard(stem, arrays, {"rows": [1]})
    record, data = commit.read_shard(stem)
    assert record["rows"] == [1]
    np.testing.assert_array_equal(data["0.soft"], arrays["0.soft"])
    # As a second writer that lost the race: neither its record nor its arrays may stay.
    assert not commit.write_shard(stem, {"0.soft": np.zeros(6)}, {"rows": [2]})
    assert commit.read_record(stem) == record
    path = tmp_path / record["npz"]
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "000000.json"}
    # The same length: only the digest can notice.
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="changed or damaged"):
        commit.read_shard(stem)
    text = stem.with_suffix(".json").read_text()
    # A row that was changed, a record that was torn, and JSON that is no record.
    for damaged in (text.replace("[1]", "[7]"), text[:9], "[]", "{}"):
        stem.with_suffix(".json").write_text(damaged)
        with pytest.raises(ValueError, match="changed or damaged"):
            commit.read_record(stem)


def test_only_what_dead_writers_of_ours_left_is_collected(tmp_path):
    # The form of our own names, of another machine: whether its writer lives cannot be seen.
    other = f".tmp-{'0' * 8}-{'a' * 32}"
    # Names that look like ours and belong to the user, who would lose a file.
    kept = ["photo.png", ".tmp-mine", ".tmp-0123", other, "000000-0123456789ab.npz", "notes.npz"]
    touch(tmp_path, *kept)
    dead, open_ = disk._temporary(tmp_path)
    # A writer that died: the kernel gave its lock back with the descriptor.
    os.close(open_)
    alive, held = disk._temporary(tmp_path)
    assert commit.collect(tmp_path) == 1
    assert {p.name for p in tmp_path.iterdir()} == {*kept, alive.name}
    os.close(held)
    # So old that no writer can still be at it, wherever it runs.
    os.utime(tmp_path / other, (0, 0))
    (tmp_path / "link").symlink_to(tmp_path / "photo.png")
    # Three: the dead writer of the other machine, the one closed above, and a lost race's arrays.
    assert commit.collect(tmp_path, {0: "000000-ba9876543210.npz"}) == 3
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"photo.png", ".tmp-mine", ".tmp-0123", "notes.npz", "link"}
    assert not dead.exists()


def test_on_a_disk_without_locks_a_file_is_left_behind_only_once_it_is_old(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr(disk.fcntl, "flock", no_locks)
    written, held = disk._temporary(tmp_path)
    assert commit.collect(tmp_path) == 0
    os.utime(written, (0, 0))
    assert commit.collect(tmp_path) == 1
    os.close(held)


def test_errors_that_pass_are_waited_for_and_others_are_not():
    # ESTALE, then EIO, as a network disk gives them for a while.
    waits, codes = [], [5, 116]

    def stutter():
        if codes:
            raise OSError(codes.pop(), "no")
        return "there"

    assert faults.retried(stutter, sleep=waits.append) == "there"
    # Twice as long each time, given to `sleep` instead of waited for.
    assert waits == [0.2, 0.4]
    calls = []

    def missing():
        calls.append(1)
        raise FileNotFoundError(2, "none")

    with pytest.raises(FileNotFoundError):
        faults.retried(missing, sleep=waits.append)
    assert len(calls) == 1


def test_a_million_rows_would_take_thirty_bytes_each_and_are_read_back_as_they_are():
    # As a store gives them: names that are alike, and a hash of 32 digits.
    digits = (hashlib.md5(str(i).encode()).hexdigest() for i in range(1000))
    want = [
        manifest.Item(f"photos/ä {i:05d}.png", 10_000 + i % 7, None, d)
        for i, d in enumerate(digits)
    ]
    rows = manifest.Rows(iter(want))
    assert len(rows) == 1000
    assert list(rows) == want
    assert rows[250:260] == tuple(want[250:260])  # over the end of a block
    assert rows[::300] == tuple(want[::300])
    assert (rows[-1], rows[0], rows[999]) == (want[-1], want[0], want[-1])
    with pytest.raises(IndexError):
        rows[1000]
    plain = manifest.Manifest("s3://bucket", tuple(want))
    assert manifest.Manifest("s3://bucket", rows).sha256() == plain.sha256()
    assert sum(map(len, rows._blocks)) < 35 * len(rows)
    assert manifest.Rows(reversed(want)) == rows
    assert list(manifest.Rows(iter([]))) == []


def items(count, changed=0):
    rows = (manifest.Item(f"{i:03d}.png", i, None, changed) for i in range(count))
    return manifest.Manifest("/", tuple(rows))


def test_a_run_continues_where_it_was_and_refuses_another(tmp_path):
    flags = {"areas": (0.1,), "seed": 0, "batch_size": 4, "out": "x"}
    model = {"name": "toy", "fingerprint": "f"}
    job = run.Run(tmp_path, flags, model, items(40))
    assert len(list(job.pending())) == 40
    job.commit(1, {}, {"items": [], "rows": [{"id": "b"}], "errors": []})
    again = run.Run(tmp_path, flags | {"batch_size": 8}, model, items(40))
    # The second shard: rows 16 to 31 of 40, so that work is left on both sides of it.
    assert again.done() == 16
    assert {shard for shard, _ in again.pending()} == {0, 2}
    for changed, words in [
        ((flags | {"seed": 1}, model, items(40)), "--seed"),
        ((flags, model | {"fingerprint": "g"}, items(40)), "fingerprint"),
        ((flags, model, items(41)), "the pictures"),
        (
            (flags, model, items(40, changed=9)),
            r"run: the pictures \(000.png: changed 0 there, 9 now; copied with",
        ),
    ]:
        with pytest.raises(ValueError, match=words):
            run.Run(tmp_path, *changed)
    passes = run.Run(tmp_path / "passes", {}, model, manifest.parts([("count", 5)], 2))
    passes.commit(0, {}, {"items": [], "rows": [], "errors": []})
    with pytest.raises(ValueError, match=r"run: passes over latents \(3 there, 2 now\)"):
        run.Run(tmp_path / "passes", {}, model, manifest.parts([("count", 5)], 3))
    for shard in (0, 2):
        again.commit(shard, {}, {"items": [], "rows": [], "errors": [{"id": shard}]})
    assert again.finish() == (1, 2)
    # In the order of the manifest, whoever committed first.
    assert pathlib.Path(tmp_path, "errors.jsonl").read_text() == '{"id": 0}\n{"id": 2}\n'


def test_a_run_that_committed_nothing_gives_way(tmp_path):
    run.Run(tmp_path, {"areas": (0.001,)}, {"name": "toy"}, items(3))
    # Nothing was committed under the first settings, so nothing is lost with them.
    job = run.Run(tmp_path, {"areas": (0.1,)}, {"name": "toy"}, items(4))
    assert json.loads((tmp_path / "run.json").read_text())["flags"] == {"areas": [0.1]}
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 4
    assert len(list(job.pending())) == 4


def test_another_kind_of_processor_is_noticed_and_refused_where_bits_were_asked_for(
    tmp_path, monkeypatch, caplog
):
    there = {"processor": "Zen 2", "instructions": "AVX2", "devices": "cpu"}
    for asked in (None, True):
        begun = tmp_path / str(asked), {"reproducible": asked}, {"name": "toy"}, items(1)
        monkeypatch.setattr(machine, "here", lambda: there)
        run.Run(*begun).commit(0, {}, {"items": [], "rows": [], "errors": []})
        run.Run(*begun)
        assert json.loads((begun[0] / "run.json").read_text())["machine"] == there
        # On the same machine there is nothing to say.
        assert not caplog.messages
        monkeypatch.setattr(machine, "here", lambda: {**there, "instructions": "AVX512"})
        words = "instructions AVX2 there, AVX512 now"
        if asked:
            with pytest.raises(ValueError, match=words):
                run.Run(*begun)
        else:
            run.Run(*begun)
            assert words in caplog.messages.pop()
            caplog.clear()


def test_a_foreign_run_json_is_refused(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "000000.json").write_text("{}")
    for text in ("not json", "[]", "{}"):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ValueError, match="not a record"):
            run.Run(tmp_path, {"seed": 0}, {"name": "toy"}, items(1))


def test_content_keys_follow_the_content():
    words = np.arange(24, dtype=np.uint32).reshape(3, 8)
    keys = batches.content_keys(jax.random.key(0), words)
    want = jax.random.key(0)
    # By hand: all words of the digest, one after the other.
    for word in words[1]:
        want = jax.random.fold_in(want, word)
    assert (jax.random.key_data(keys[1]) == jax.random.key_data(want)).all()
    # Alone or among others: the key must not know the place in the batch.
    alone = batches.content_keys(jax.random.key(0), words[1:])
    assert (jax.random.key_data(alone[0]) == jax.random.key_data(want)).all()
    assert len(np.unique(jax.random.key_data(keys), axis=0)) == 3


def test_progress_draws_a_bar_only_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen, pipe = Terminal(), io.StringIO()
    for stream in (screen, pipe):
        progress = Progress(4, stream=stream)
        progress.add(4)
        progress.close()
    assert "4/4 images" in screen.getvalue()
    assert pipe.getvalue() == ""
    line = Progress(100, done=20).line(60, 20.0)
    # 40 done in 20 s: the 20 of an earlier run say nothing of the speed of this one.
    assert line == "60/100 images, 2.00 images/s, 20 s left"
    assert Progress(100).line(1, 60.0) == "1/100 images, 60 s/image, 1 h 39 min left"
