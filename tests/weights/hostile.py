"""Files of weights that would run something, or ask for all memory, and a reader that is watched.

  python -m tests.weights.hostile

Run as its own process: an audit hook cannot be taken off. Prints one JSON object.
"""

import io
import json
import pathlib
import pickle
import resource
import struct
import sys
import tempfile
import time
import zipfile

from perturb import weights as weights_lib

# What a pickle may name to run something, at once or by way of another file.
PROGRAMS = [
    ("os", "system"),
    ("posix", "system"),
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "__import__"),
    ("runpy", "run_path"),
    ("shutil", "rmtree"),
    # Reaches anything from a name that is allowed.
    ("builtins", "getattr"),
    ("torch.hub", "load"),
    ("torch", "load"),
    ("numpy", "load"),
    # A dotted name, which newer protocols look up piece by piece.
    ("torch.storage", "os.system"),
    ("webbrowser", "open"),
]


class Payload:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return pathlib.Path.mkdir, (pathlib.Path(self.canary),)


def calls(module, name, canary):
    """A call in the styles of different protocols: GLOBAL + REDUCE, STACK_GLOBAL, INST, OBJ."""
    text = f"touch {canary}"
    yield f"c{module}\n{name}\n(V{text}\ntR.".encode()
    short = (
        b"\x8c"
        + bytes([len(module)])
        + module.encode()
        + b"\x8c"
        + bytes([len(name)])
        + name.encode()
    )
    yield b"\x80\x04" + short + b"\x93\x8c" + bytes([len(text)]) + text.encode() + b"\x85R."
    yield f"(V{text}\ni{module}\n{name}\n.".encode()


def zipped(root, **more):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", more.pop("compress", zipfile.ZIP_STORED)) as archive:
        archive.writestr("m/data.pkl", root)
        for name, data in more.items():
            archive.writestr(f"m/{name}", data)
    return buffer.getvalue()


def npz(**entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name + ".npy", data)
    return buffer.getvalue()


def header(shape, dtype="<f4"):
    # NumPy fills its head up to a multiple of 64 bytes, 10 of them before the text.
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def malicious(canary):
    """Yields name and bytes."""
    for i, (module, name) in enumerate(PROGRAMS):
        for j, program in enumerate(calls(module, name, canary)):
            yield f"raw{i}{j}.pt", program
            yield f"zip{i}{j}.pth", zipped(program)
    for protocol in range(6):
        data = pickle.dumps({"w": Payload(canary)}, protocol)
        yield f"payload{protocol}.pth", zipped(data)
        # An array of objects is a pickle behind a head of NumPy's.
        yield f"npz{protocol}.npz", npz(w=header((1,), "|O") + data)
        # Names that promise another kind of file than the content is.
        for suffix in ("pkl", "ckpt", "bin", "safetensors", "npz", "msgpack"):
            yield f"renamed{protocol}.{suffix}", data


def bombs():
    """Yields name and bytes of files that unpack to far more than they are."""
    # 200 MB of zeros from some 200 kB.
    yield "ratio.npz", npz(w=header((50_000_000,)) + bytes(200_000_000))
    # 2^40 numbers by its head, of which four are there.
    yield "head.npz", npz(w=header((1 << 40,)) + bytes(16))
    yield "negative.npz", npz(w=header((-1,)) + bytes(16))
    # 3,000 beginnings of tuples, none of which ends.
    deep = b"\x80\x02" + b"]" + b"]a" * 0 + b"(" * 3_000 + b"."
    yield "marks.pth", zipped(deep)
    # Each list holds the one before it twice: unfolded, 2^40 elements.
    doubled = (
        b"\x80\x02]q\x00"
        + b"".join(
            b"]q" + bytes([i + 1]) + b"(h" + bytes([i]) + b"h" + bytes([i]) + b"e"
            for i in range(40)
        )
        + b"."
    )
    yield "doubled.pth", zipped(doubled)
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    )
    # A storage of 2^31 - 1 numbers; the file has two.
    storage += b"J\xff\xff\xff\x7ftQ."
    yield "storage.pth", zipped(b"\x80\x02" + storage, **{"data/0": b"\0" * 8})
    # A pickle of 50 MB of zeros, packed, which a file of torch never is.
    yield "packed.pth", zipped(bytes(50_000_000), compress=zipfile.ZIP_DEFLATED)
    # The length of its head, 2^40 bytes.
    yield "head.safetensors", struct.pack("<Q", 1 << 40) + b"{}"
    wide = json.dumps({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})
    yield "shape.safetensors", struct.pack("<Q", len(wide)) + wide.encode()
    # An array of 2^32 - 1 elements and then nothing.
    yield "array.msgpack", b"\xdd\xff\xff\xff\xff"
    # One array in another, far deeper than Python's stack.
    yield "nested.msgpack", b"\x91" * 100_000
    yield "maps.msgpack", b"\x81\xa1a" * 100_000 + b"\xc0"
    # Which of the two a reader takes is chance.
    yield "twice.msgpack", b"\x82\xa1a\x01\xa1a\x02"
    # Ten million elements of a byte, each of which is a pointer in Python.
    yield "nils.msgpack", b"\xdd\x00\x98\x96\x80" + b"\xc0" * 10_000_000
    # A kind of extension that flax does not write.
    yield "kind.msgpack", b"\x81\xa1a\xd4\x2a\x00"
    # Arrays as flax writes them: a shape of 2^40, of objects, below zero, of raw bytes, and a
    # shape that nests.
    for shape, dtype in (
        (b"\x91\xcf\x00\x00\x01\x00\x00\x00\x00\x00", b"float32"),
        (b"\x91\x01", b"O"),
        (b"\x91\xff", b"float32"),
        (b"\x91\x01", b"V4"),
        (b"\x91" * 50_000, b"float32"),
    ):
        body = b"\x93" + shape + bytes([0xA0 | len(dtype)]) + dtype + b"\xc4\x04" + bytes(4)
        head = b"\xc9" + struct.pack(">I", len(body)) + b"\x01"
        yield f"array{len(shape)}{dtype.decode()}.msgpack", b"\x81\xa1a" + head + body


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    import flax.serialization  # noqa: F401  what a reader loads is not what a file runs
    import safetensors  # noqa: F401
    from etils import epath

    from perturb.weights import torchfile  # noqa: F401

    # What is imported on first use is imported now: during a file an import counts as an event.
    epath.Path("x").exists()
    b"a".decode("raw_unicode_escape")
    found = {
        "files": 0,
        "refused": 0,
        "bombs": 0,
        "bombs_refused": 0,
        "longest_s": 0.0,
        "other": [],
    }
    events = []
    watched = (
        "os.system",
        "subprocess.Popen",
        "exec",
        "os.exec",
        "os.posix_spawn",
        "pickle.find_class",
        "os.mkdir",
        "shutil.rmtree",
        "import",
    )
    on = [False]

    def hook(event, arguments):
        if on[0] and event in watched:
            events.append(f"{event} {arguments!r}"[:200])

    sys.addaudithook(hook)
    with tempfile.TemporaryDirectory() as folder:
        canary = pathlib.Path(folder, "ran")
        groups = {"files": list(malicious(str(canary))), "bombs": list(bombs())}
        # A good file first, for the memory that any reading takes once.
        (pathlib.Path(folder) / "warm.npz").write_bytes(npz(w=header((2,)) + bytes(8)))
        weights_lib.read_tensors(pathlib.Path(folder) / "warm.npz")
        start = peak()
        for group, files in groups.items():
            for name, data in files:
                path = pathlib.Path(folder, name)
                path.write_bytes(data)
                # Of the processor, which a busy machine does not lengthen.
                begin = time.process_time()
                found[group] += 1
                on[0] = True
                try:
                    tensors = weights_lib.read_tensors(path)
                    found["other"].append(f"{name} was read: {list(tensors)[:3]}")
                # A refusal without words is none.
                except ValueError as error:
                    found["refused" if group == "files" else "bombs_refused"] += bool(str(error))
                except BaseException as error:
                    found["other"].append(f"{name}: {error!r}"[:200])
                finally:
                    on[0] = False
                found["longest_s"] = max(found["longest_s"], time.process_time() - begin)
                path.unlink()
        found["ran"] = canary.exists()
    found["executed"] = events
    found["growth_mb"] = round(peak() - start, 1)
    found["longest_s"] = round(found["longest_s"], 3)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
