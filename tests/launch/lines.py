"""Hostile command lines and files for every launcher, and how each is refused.

  python -m tests.launch.lines --number=500

Draws `--number` lines for each launcher: values of flags that are programs, paths, control
characters or far too long, and lists, class names, boxes and weights that lie. None can be used, so
each must end before anything is compiled: with one printable line, exit code 2, no file written and
nothing started. Run as a process of its own: an audit hook cannot be taken off. Prints one JSON
object.
"""

import argparse
import collections
import contextlib
import functools
import io
import json
import os
import pathlib
import sys
import tempfile
import time

import numpy as np
import PIL.Image
from absl.testing import flagsaver

from launch import compare, convert, dissect, evaluate, features, flags, masks, walk
from launch.job import faults
from launch.studio import __main__ as studio
from tests.weights import hostile as weight_files

LONGEST = len("error: ") + 300
SECONDS = 10.0  # of processor time: far more than a refusal takes, far less than a compilation
# What starts a program or opens a connection.
EVENTS = {
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen"),
    *("pty.spawn", "webbrowser.open", "socket.connect", "urllib.Request", "ctypes.dlopen"),
}

# Pieces that hostile text is made of; `{canary}` is a file that no program of ours makes.
PIECES = [
    *("$(touch {canary})", "`touch {canary}`", "; touch {canary}", "| touch {canary}", "&& id"),
    *("__import__('os').system('touch {canary}')", "os:system", "../../../..", "/etc/passwd"),
    # Colours and titles of terminals, a bell, a line drawn over, text that runs backwards.
    *(
        "\x1b[31m",
        "\x1b]0;title\x07",
        "\r\x1b[2K",
        "\u202egnp.",
        "\u200b",
        "\ufeff",
        "\x00",
        "\x7f",
    ),
    *("<script>alert(1)</script>", "'\"><img src=x onerror=alert(2)>", "=cmd|'/c calc'!A0"),
    *("%s%n%d", "{{0.__class__}}", "{{self}}", "\\x00", "\n", "\r\n", "\t", "\u2028", " "),
    # Bytes that are no UTF-8, as the shell gives them to Python.
    *("\udcff", "\udc80\udcfe", "𝓂𝒶𝓈𝓀", "é", "ﬀ", "²", "٣", "９"),
    *("nan", "-inf", "1e999", "-1", "0x10", "1_0", "True", "null", "[]", "{{}}", "//", ":", "="),
    *("a" * 300, "9" * 5000, "-" * 400, "/x" * 3000),
]


def texts(rng, canary):
    """Yields hostile values without end."""
    while True:
        some = rng.choice(len(PIECES), int(rng.integers(1, 4)))
        yield "".join(PIECES[i] for i in some).format(canary=canary)


class Maker:
    """Writes hostile files into a folder, each once, and gives their paths in turn."""

    def __init__(self, folder, canary, rng):
        self.folder, self.text = pathlib.Path(folder), texts(rng, canary)
        self.rng, self.number = rng, 0
        small = [*weight_files.malicious(canary), *weight_files.bombs()]
        # The reader of weights meets the large ones in `tests.weights.hostile`.
        self.weights = [(n, d) for n, d in small if len(d) < 1 << 20]

    def file(self, data, suffix):
        self.number += 1
        path = self.folder / f"{self.number:05d}{suffix}"
        path.write_bytes(data)
        return str(path)

    def lines(self):
        return [next(self.text).replace("\n", "") for _ in range(int(self.rng.integers(1, 5)))]

    def table(self):
        """A list whose head or whose bytes are wrong."""
        # The heads of lists of pictures, of boxes and of concepts.
        heads = [b"path,target", b"file,xmin,ymin,xmax,ymax", b"path,concept"]
        head = heads[int(self.rng.integers(3))]
        bad = "\n".join(self.lines()).encode(errors="surrogateescape")
        ways = [
            b"\xff\xfe\x00path\n" + bad,
            b'"path' + bad * 50,
            b"paths" + b"," * 5000 + b"\n" + bad,
            # A field longer than the 131,072 characters that Python's reader takes.
            head + b"\n" + b"x" * 200_000 + b"\n",
            b"path,label,class\n" + bad,
            b"thing,that\n" + bad,
            b"\x00" * 100,
            b"",
            bytes(self.rng.integers(0, 256, 500, np.uint8)),
        ]
        return self.file(ways[int(self.rng.integers(len(ways)))], ".csv")

    def run(self):
        """A folder whose record is no record of a run."""
        ways = [b"", b"[" * 100_000, b"9" * 5000, b"\xff", b"[]", b'{"flags": 3}', b"null"]
        self.number += 1
        folder = self.folder / f"{self.number:05d}"
        folder.mkdir()
        (folder / "run.json").write_bytes(ways[int(self.rng.integers(len(ways)))])
        return str(folder)

    def names(self):
        """Class names that are none of a network's."""
        ways = [
            b"[" * 100_000,
            b'{"0":' * 100_000,
            b'{"1": "a"}',
            b"[[], []]",
            b"9" * 5000,
            b'"a"',
            b"[1e999, NaN]",
            b'{"0": {"name": null}, "5": 1}',
            b"\xff\xfe" + bytes(50),
            json.dumps(self.lines() * 7).encode(),
        ]
        return self.file(ways[int(self.rng.integers(len(ways)))], ".json")

    def weight(self):
        name, data = self.weights[int(self.rng.integers(len(self.weights)))]
        return self.file(data, pathlib.PurePath(name).suffix)

    def nested(self):
        """JSON far deeper than Python's stack."""
        return ("[" if self.rng.integers(2) else '{"a":') * 50_000


def numbers(name):
    """A flag that takes one number."""
    # Signs, blanks and other digits are numbers to Python: only what cannot be read is drawn.
    return lambda make: f"--{name}=x{next(make.text)}"


def texted(name, *more, put="{}"):
    """A flag that takes text, of which no value that is drawn can be right."""
    return lambda make: [*more, f"--{name}={put.format(next(make.text))}"]


def filed(name, way, *more):
    """A flag that takes a file of one kind."""
    return lambda make: [*more, f"--{name}={getattr(make, way)()}"]


NAMED = ("seed", "shard", "max_error_rate", "process_id", "num_processes")
PICTURES = "--images={photos}"
DEMO = (PICTURES, "--model=demo")
NET = (PICTURES, "--model=squeezenet1_1")
COMMON = [
    *(numbers(name) for name in NAMED),
    texted("coordinator"),
    lambda make: [f"--{next(make.text)}=1"],
    lambda make: ["x" + next(make.text)],
]
MODEL = [
    texted("model", PICTURES, put="x{}"),
    texted("model", PICTURES, put="no.such.module{}:load"),
    texted("weights", *NET),
    texted("weights", *NET, put="hf:{}"),
    texted("rename", *DEMO, put="{}=["),
    texted("weights_sha256", *NET),
    numbers("input_size"),
    numbers("batch_size"),
    filed("weights", "weight", *NET),
    texted("images", "--model=demo", put="x{}"),
    filed("images", "table", "--model=demo"),
]
TARGETED = [
    texted("target", *DEMO, put="x{}"),
    filed("class_names", "names", *DEMO),
    texted("class_names", *DEMO, put="x{}"),
]
GENERATOR = [
    texted("generator", put="x{}"),
    texted("weights", "--generator=svhn_dcgan"),
    filed("weights", "weight", "--generator=svhn_dcgan"),
    texted("generator_options", "--generator=svhn_dcgan", "--weights=x", put="x{}"),
    lambda make: ["--generator=svhn_dcgan", "--weights=x", f"--generator_options={make.nested()}"],
    texted("concepts", put="x{}"),
    texted("concepts", put="color:x{}"),
    texted("layer", put="x{}"),
]
# Of each launcher: what runs it, its own flags, and what makes a wrong line of it.
LAUNCHERS = {
    "masks": (
        masks,
        [
            *(*COMMON, *MODEL, *TARGETED),
            *(texted(n, *DEMO, put="x{}") for n in ("method", "game", "areas", "counts", "solver")),
            *(texted(n, *DEMO, put="x{}") for n in ("operator", "reward", "preset", "evidence")),
            *(texted(n, *DEMO, put="x{}") for n in ("export", "steps", "second_model")),
            texted("layer", *DEMO, "--method=channels", put="x{}"),
            filed("parity", "weight", *DEMO),
            texted("parity", *DEMO, put="x{}"),
        ],
    ),
    "evaluate": (
        evaluate,
        [
            *(*COMMON, *MODEL, *TARGETED),
            *(texted(n, *DEMO, put="x{}") for n in ("attributions", "metrics", "rise_samples")),
            filed("boxes", "table", *DEMO, "--metrics=boxes"),
            texted("boxes", *DEMO, "--metrics=boxes", put="x{}"),
            texted("attributions", *DEMO, put="maps:x{}"),
        ],
    ),
    "dissect": (
        dissect,
        [
            *(*COMMON, *GENERATOR, *MODEL),
            *(numbers(n) for n in ("samples", "effect_samples", "quantile", "units", "controls")),
            *(numbers(n) for n in ("networks", "rotations")),
            texted("layer", *DEMO, "--concepts=edges", put="x{}"),
            filed("concepts", "table", *DEMO),
            texted("concepts", *DEMO, put="x{}"),
        ],
    ),
    "walk": (
        walk,
        [
            *(*COMMON, *GENERATOR),
            *(numbers(n) for n in ("from", "to", "frames", "walks", "fit_samples", "animation")),
            texted("direction", put="x{}"),
            texted("direction", put="sefa:x{}"),
            texted("direction", put="attribute:x{}"),
            texted("direction", put="x{}.npy"),
            filed("direction", "weight"),
            texted("layers", put="x{}"),
        ],
    ),
    "features": (
        features,
        [
            *(*COMMON, *MODEL),
            *(texted(n, "--model=demo", put="x{}") for n in ("units", "preset", "steps", "size")),
            texted("layer", "--model=demo", put="x{}"),
            filed("class_names", "names", "--model=demo"),
        ],
    ),
    "convert": (
        convert,
        [
            texted("source", put="x{}"),
            filed("source", "weight"),
            filed("source", "names"),
            texted("part", "--source={weights}", put="x{}"),
            texted("out", "--source={weights}", put="x{}.txt"),
            texted("rename", "--source={weights}", put="{}=["),
            lambda make: [f"--{next(make.text)}=1"],
        ],
    ),
    "compare": (
        compare,
        [
            texted("first", put="x{}"),
            lambda make: ["--first=demo", f"--second=x{next(make.text).replace(':', '')}"],
            lambda make: [f"--first={make.run()}", f"--second={make.run()}"],
            lambda make: [f"--first={make.run()}", "--second=demo"],
            lambda make: [f"--{next(make.text)}=1"],
        ],
    ),
    "studio": (
        studio,
        [
            *(texted("generator", put="x{}"), texted("model", put="x{}")),
            texted("model", put="no.such.module{}:load"),
            *(numbers("port"), texted("second_model", "--model=demo", put="x{}")),
            texted("images", "--model=demo", put="x{}"),
            filed("images", "table", "--model=demo"),
            filed("weights", "weight", "--model=squeezenet1_1"),
            filed("class_names", "names", "--model=demo"),
            texted("generator_options", "--generator=svhn_dcgan", "--weights=x", put="x{}"),
            texted("concepts", put="x{}"),
        ],
    ),
}


class Watch:
    """What programs are started, counted by an audit hook."""

    def __init__(self):
        self.seen, self.on = [], False
        sys.addaudithook(self._hear)

    def _hear(self, event, arguments):
        if self.on and event in EVENTS:
            self.seen.append(f"{event} {arguments!r:.80}")


def launched(launcher, arguments):
    """Runs a launcher in this process; returns code, what it wrote, and an error that got out."""
    said, wrong = io.StringIO(), ""
    code = None
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said), flagsaver.flagsaver():
        try:
            flags.run(launcher.main, ["launcher", *arguments], own=getattr(launcher, "OWN", None))
        except SystemExit as end:
            code = end.code
        # Whatever gets out of a launcher is what is looked for here.
        except BaseException as error:
            wrong = repr(error)[:200]
    return code, said.getvalue(), wrong


def tree(folder):
    """The files in a folder."""
    return sorted(str(p) for p in pathlib.Path(folder).rglob("*") if not p.is_dir())


def faults_of(code, said, wrong, before, after, seen, seconds):
    """What is wrong with the end of a line, in words."""
    lines = said.splitlines()
    return [
        *([f"got out: {wrong}"] if wrong else []),
        *([f"code {code}"] if code != 2 and not wrong else []),
        *([f"{len(lines)} lines"] if len(lines) != 1 and not wrong else []),
        *(["not printable"] if lines and not lines[-1].isprintable() else []),
        *([f"{len(lines[-1])} long"] if lines and len(lines[-1]) > LONGEST else []),
        *([f"wrote {sorted(set(after) - set(before))[:2]}"] if after != before else []),
        *(["started " + "; ".join(seen[:2])] if seen else []),
        *([f"{seconds:.0f} s"] if seconds > SECONDS else []),
    ]


def prepared(folder):
    """Makes good files for lines that are wrong elsewhere."""
    import safetensors.numpy

    photos = folder / "photos"
    photos.mkdir()
    PIL.Image.new("RGB", (64, 64), "red").save(photos / "a.png")
    weights = folder / "w.pth"
    # As little as a file can be and still be read.
    data = safetensors.numpy.save({"w": np.zeros((2, 2), np.float32)})
    (folder / "w.safetensors").write_bytes(data)
    weights.write_bytes(b"x")
    return {"{photos}": str(photos), "{weights}": str(weights)}


def judged(name, number, folder, watch, seed=0):
    """Runs `number` hostile lines of a launcher; returns the counts and what went wrong."""
    launcher, ways = LAUNCHERS[name]
    rng = np.random.default_rng([seed, number, sorted(LAUNCHERS).index(name)])
    canary = folder / "canary"
    made, here = folder / "made", folder / "here"
    for path in (made, here):
        path.mkdir(exist_ok=True)
    maker = Maker(made, canary, rng)
    good = prepared(folder) if not (folder / "photos").exists() else {}
    good = good or {"{photos}": str(folder / "photos"), "{weights}": str(folder / "w.pth")}
    counts, wrong = collections.Counter(), []
    longest = 0.0
    for i in range(number):
        line = ways[i % len(ways)](maker)
        line = [line] if isinstance(line, str) else list(line)
        line = [functools.reduce(lambda t, k: t.replace(k, good[k]), good, a) for a in line]
        # Of this launcher it is the file to write, and the default lies beside the source.
        if not any(a.startswith("--out") for a in line) and name != "studio":
            line.append(f"--out={folder}/out" + (".safetensors" if name == "convert" else ""))
        before, begin = tree(folder), time.process_time()
        watch.seen, watch.on = [], True
        code, said, got_out = launched(launcher, line)
        watch.on, seconds = False, time.process_time() - begin
        longest = max(longest, seconds)
        found = faults_of(code, said, got_out, before, tree(folder), watch.seen, seconds)
        counts["lines"] += 1
        if found:
            counts["wrong"] += 1
            wrong.append({"line": [f"{a!r:.160}" for a in line], "why": found, "said": said[-400:]})
        for path in (folder / "out").glob("**/*"):
            if not path.is_dir():
                path.unlink()
    return {**counts, "longest_s": round(longest, 2)}, wrong


@contextlib.contextmanager
def quiet():
    """No handlers of signals, and an empty folder to be in."""
    real, where = faults.leave_on_notice, pathlib.Path.cwd()
    faults.leave_on_notice = lambda: None
    with tempfile.TemporaryDirectory(prefix="l") as name:
        folder = pathlib.Path(name)
        (folder / "here").mkdir()
        os.chdir(folder / "here")
        try:
            yield folder
        finally:
            os.chdir(where)
            faults.leave_on_notice = real


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=500, help="lines for each launcher")
    parser.add_argument("--launchers", default=",".join(LAUNCHERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=3, help="wrong lines of each that are printed")
    given = parser.parse_args()
    watch, report, worst = Watch(), {}, False
    with quiet() as folder:
        for name in given.launchers.split(","):
            counts, wrong = judged(name, given.number, folder, watch, given.seed)
            report[name] = {**counts, **({"first": wrong[: given.show]} if wrong else {})}
            worst = worst or bool(wrong)
        report["canary"] = (folder / "canary").exists()
    print(json.dumps(report, indent=1))
    sys.exit(worst or report["canary"])


if __name__ == "__main__":
    main()
