"""Files of torch written by hand: their pickles name torch's functions, which do not exist here."""

import io
import pickle
import struct
import sys
import types
import zipfile

import numpy as np
import pytest

from perturb.weights import pickles, torchfile

# What the form of files before the zip begins with, and the number of its protocol, 1001.
MAGIC = 0x1950A86A20F9469CFC6C


@pytest.fixture
def fake(monkeypatch):
    """Modules of which pickle can write the names."""

    def module(name, *functions):
        made = types.ModuleType(name)
        for function in functions:
            # Classes, for pickle writes them as a module and a name.
            kind = type(function, (), {"__module__": name, "__qualname__": function})
            setattr(made, function, kind)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return module


class Reduced:
    """Pickled as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Outside:
    def __init__(self, identity):
        self.identity = identity


def dumps(value, protocol=2):
    class Pickler(pickle.Pickler):
        def persistent_id(self, x):
            return x.identity if isinstance(x, Outside) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


@pytest.fixture
def torch(fake):
    return fake("torch", "FloatStorage", "HalfStorage"), fake(
        "torch._utils", "_rebuild_tensor_v2", "_rebuild_parameter"
    )


def tensor(torch, key, array, *, stride=None, offset=0, numel=None):
    kind = torch[0].HalfStorage if array.dtype == np.float16 else torch[0].FloatStorage
    storage = Outside(("storage", kind, key, "cpu", array.size if numel is None else numel))
    # torch counts strides in elements, NumPy in bytes.
    stride = stride or tuple(s // array.itemsize for s in array.strides)
    return Reduced(torch[1]._rebuild_tensor_v2, storage, offset, array.shape, stride, False, {})


def zipped(path, value, storages, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", dumps(value))
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())


def legacy(path, value, storages):
    parts = [dumps(MAGIC), dumps(1001), dumps({"little_endian": True}), dumps(value)]
    parts.append(dumps(sorted(storages)))
    for key in sorted(storages):
        array = storages[key]
        parts += [struct.pack("<q", array.size), array.tobytes()]
    path.write_bytes(b"".join(parts))


@pytest.mark.parametrize("write", [zipped, legacy])
def test_tensors_come_out_as_they_went_in(torch, tmp_path, write):
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    b = np.array([1.5, -2], np.float16)
    value = {"a": tensor(torch, "0", a), "b": tensor(torch, "1", b), "epoch": 3, "name": "x"}
    # One storage, seen with its axes swapped, and a part of its second row.
    value["turned"] = tensor(torch, "0", a.T, stride=(1, 4))
    value["part"] = tensor(torch, "0", a[1, 1:3], stride=(1,), offset=5, numel=12)
    write(tmp_path / "f.pth", value, {"0": a, "1": b})
    found = torchfile.read_torch(tmp_path / "f.pth")
    assert sorted(found) == ["a", "b", "part", "turned"]
    for name, wanted in {"a": a, "b": b, "turned": a.T, "part": a[1, 1:3]}.items():
        np.testing.assert_array_equal(found[name], wanted)
        assert found[name].dtype == wanted.dtype


def test_a_pickled_network_gives_its_state_dict_and_its_code_stays_text(torch, fake, tmp_path):
    persistence = fake("torch_utils.persistence", "_reconstruct_persistent_obj")
    fake("torch_utils")
    storage = fake("torch.storage", "_load_from_bytes")
    a = np.arange(6, dtype=np.float32).reshape(2, 3)

    def loaded(array):
        inner = tmp_path / "inner"
        # A storage that was pickled by itself is a whole file of the older form, inside.
        legacy(
            inner, Outside(("storage", torch[0].FloatStorage, "7", "cpu", array.size)), {"7": array}
        )
        return Reduced(
            torch[1]._rebuild_tensor_v2,
            Reduced(storage._load_from_bytes, inner.read_bytes()),
            0,
            array.shape,
            (3, 1),
            False,
            {},
        )

    def network(**modules):
        state = {
            "_parameters": {"weight": Reduced(torch[1]._rebuild_parameter, loaded(a), True, {})},
            "_buffers": {"w_avg": loaded(a + 1)},
            "_modules": modules,
            "training": False,
        }
        # Networks of this kind bring their source along; run, it would end the test with a signal.
        meta = {"type": "class", "module_src": "import os; os.abort()", "state": state}
        return Reduced(persistence._reconstruct_persistent_obj, meta)

    value = {"G_ema": network(fc0=network()), "D": None}
    (tmp_path / "n.pkl").write_bytes(dumps(value, 4))
    parts = torchfile.parts(torchfile.read_torch(tmp_path / "n.pkl"))
    assert sorted(parts) == ["G_ema"]
    assert sorted(parts["G_ema"]) == ["fc0.w_avg", "fc0.weight", "w_avg", "weight"]
    np.testing.assert_array_equal(parts["G_ema"]["fc0.w_avg"], a + 1)


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/never",)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        # One name in the three ways in which protocols write it.
        (dumps({"a": Evil()}), "names posix.system"),
        (dumps({"a": Evil()}, 4), "names posix.system"),
        (dumps({"a": Evil()}, 0), "names posix.system"),
        (b"cbuiltins\neval\n(S'1'\ntR.", "names builtins.eval"),
        (b"cos\nsystem\n.", "names os.system"),
        (b"\x80\x02]q\x00" + b"(h\x00h\x00" * 3, "no readable pickle"),
        # A number in a registry that only the program knows which wrote it.
        (b"\x80\x04\x82\x01.", "EXT1"),
        (b"not a pickle", "no readable pickle"),
        (b"", "no readable pickle"),
        (b"}q\x00(X\x01\x00\x00\x00a(h\x00h\x00tq\x01h\x01u.", "no readable pickle"),
        (b"}((K\x01tK\x02u.", "a key is a tuple"),
        (dumps({"a": 1}), "no tensors"),
        (dumps([1, 2]), "no tensors"),
    ],
)
def test_anything_else_is_refused_and_nothing_runs(tmp_path, data, words):
    (tmp_path / "x.pkl").write_bytes(data)
    ran = []

    def hook(event, arguments):
        # Importing a module is an `exec` too, and pytest may do so at any time.
        if event in ("os.system", "subprocess.Popen", "exec") and ran is not None:
            ran.append(event)

    sys.addaudithook(hook)
    with pytest.raises(ValueError, match=words):
        torchfile.read_torch(tmp_path / "x.pkl")
    assert not [event for event in ran if event != "exec"]


def test_sizes_that_do_not_fit_are_refused(torch, tmp_path):
    a = np.zeros(4, np.float32)
    # Four numbers that a stride of 0 shows as a million.
    huge = np.broadcast_to(a[:1], (1 << 20,))
    for value, words in [
        ({"a": tensor(torch, "0", huge, stride=(0,), numel=4)}, "does not fit its storage"),
        ({"a": tensor(torch, "0", a, offset=1)}, "does not fit its storage"),
        ({"a": tensor(torch, "1", a)}, "storage 1 is missing"),
    ]:
        zipped(tmp_path / "x.pth", value, {"0": a})
        with pytest.raises(ValueError, match=words):
            torchfile.read_torch(tmp_path / "x.pth")
    zipped(tmp_path / "x.pth", {"a": tensor(torch, "0", a)}, {"0": a}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        torchfile.read_torch(tmp_path / "x.pth")
    with pytest.raises(FileNotFoundError):
        torchfile.read_torch(tmp_path / "none.pth")


def test_a_claimed_length_takes_no_memory(torch, tmp_path):
    """The old form gives each storage's length twice, and both may be made up."""
    a, claimed = np.zeros(4, np.float32), 1 << 40
    value = {"a": tensor(torch, "0", a, numel=claimed)}
    head = [MAGIC, 1001, {"little_endian": True}, value, ["0"]]
    data = [*map(dumps, head), struct.pack("<q", claimed), a.tobytes()]
    (tmp_path / "x.pth").write_bytes(b"".join(data))
    with pytest.raises(ValueError, match="storage 0 is cut off"):
        torchfile.read_torch(tmp_path / "x.pth")


def test_entries_that_share_their_bytes_are_refused(torch, tmp_path):
    """One entry of a zip can lie inside another, so that a short file is read many times over."""
    a = np.zeros(1 << 12, np.float32)
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("archive/data/1", a.tobytes())
        (second,) = archive.infolist()
        end = archive.start_dir
    local = np.frombuffer(inner.getvalue()[:end], np.uint8)
    # Filled up to whole float32 numbers.
    whole = np.resize(local, -(-len(local) // 4) * 4).view(np.float32)
    value = {"a": tensor(torch, "0", whole), "b": tensor(torch, "1", a)}
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("archive/data.pkl", dumps(value))
        archive.writestr("archive/data/0", whole.tobytes())
        first = archive.getinfo("archive/data/0")
        # Behind the first entry's own head of 30 bytes and its name: inside its data.
        second.header_offset = first.header_offset + 30 + len(first.filename)
        archive.filelist.append(second)
        archive.NameToInfo[second.filename] = second
    with pytest.raises(ValueError, match="larger than the file"):
        torchfile.read_torch(tmp_path / "x.pth")


def test_every_cut_and_changed_byte_is_read_or_refused(torch, tmp_path):
    a = np.arange(4, dtype=np.float32)
    legacy(tmp_path / "f", {"a": tensor(torch, "0", a)}, {"0": a})
    data = (tmp_path / "f").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(300):
        # Every other file is cut somewhere, and in all of them one bit is turned.
        changed = bytearray(data[: rng.integers(len(data))] if trial % 2 else data)
        if changed:
            changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
        (tmp_path / "x").write_bytes(changed)
        try:
            torchfile.read_torch(tmp_path / "x")
        except ValueError:
            refused += 1
    # Half of them at the least: the cut ones. A bit in the numbers themselves is no damage.
    assert refused > 150


def test_shared_dicts_are_not_unfolded_without_end(tmp_path):
    value = {"a": 1}
    # 2^60 paths to one number, in sixty small dicts.
    for _ in range(60):
        value = {"l": value, "r": value}
    (tmp_path / "x.pkl").write_bytes(dumps(value))
    with pytest.raises(ValueError, match="unfolds to more"):
        torchfile.read_torch(tmp_path / "x.pkl")


def test_too_many_opcodes_are_refused():
    with pytest.raises(ValueError, match="more than 10 opcodes"):
        pickles.read(io.BytesIO(dumps(list(range(50)))), allowed=(), max_opcodes=10)
