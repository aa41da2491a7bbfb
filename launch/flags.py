"""Flags that launchers share, and how every launcher starts and ends.

A shared flag is described once, here; a launcher takes the ones it needs with `shared(...)`, so
that `--help` lists what it understands, anything else is refused, and all launchers can be imported
together. `run(main)` ends bad flags and bad input with one line on stderr and exit code 2.
"""

from __future__ import annotations

import contextlib
import functools
import logging as python_logging
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from absl import app, flags, logging

from launch import help, words
from launch.job import clients, faults, hosts, store
from launch.job.run import Place, Run
from perturb import progress
from perturb.types import Record

__all__ = [
    "BAD_INPUT",
    "FAILED",
    "JOB",
    "STOPPED",
    "given",
    "join",
    "numbers",
    "one_line",
    "run",
    "shared",
    "verdict",
]

FAILED = 1  # exit code: too many items failed
BAD_INPUT = 2  # exit code: the flags or what they point at cannot be used
STOPPED = 130  # exit code: ended by Ctrl-C

# Flags that every job has, for `join` and `verdict`.
JOB = ("shard", "multiprocess", "coordinator", "num_processes", "process_id", "max_error_rate")

# Key flags belong to the launcher that asks for them, not to this file.
flags.disclaim_key_flags()
# Not parse_flags_with_absl(): that one reads sys.argv by itself and so overlooks --jax_* settings
# in a --flagfile and those written with a space.
jax.config.config_with_absl()


class _Numbers(flags.ArgumentParser[tuple[Any, ...]]):
    """Parses `0.05,0.1` into a tuple of numbers, all of which pass `check`."""

    syntactic_help = "numbers separated by commas"

    def __init__(self, kind: type, check: Callable[[Any], bool], want: str):
        self._kind, self._check, self._want = kind, check, want

    def parse(self, argument: Any) -> tuple[Any, ...]:
        parts = argument.split(",") if isinstance(argument, str) else argument
        try:
            values = tuple(self._kind(part) for part in parts)
        except ValueError:
            raise ValueError(f"expected {self._want}") from None
        if not values or not all(self._check(value) for value in values):
            raise ValueError(f"expected {self._want}")
        # Two equal areas would be two masks that differ in nothing.
        if len(set(values)) < len(values):
            raise ValueError("a value is given twice")
        return values

    def flag_type(self) -> str:
        return f"list of {self._kind.__name__}"


class _NumbersSerializer(flags.ArgumentSerializer[tuple[Any, ...]]):
    def serialize(self, value: Any) -> str:
        return ",".join(f"{v:g}" for v in value)


def numbers(
    name: str, default: str, text: str, *, kind: type, check: Callable[[Any], bool], want: str
) -> flags.FlagHolder[Any]:
    """Defines a flag that takes a comma-separated list of numbers, e.g. `--areas=0.05,0.1`."""
    parser = _Numbers(kind, check, want)
    return flags.DEFINE(parser, name, default, text, serializer=_NumbersSerializer())


_DEFINITIONS: dict[str, Callable[[], flags.FlagHolder[Any]]] = {
    "small": lambda: flags.DEFINE_bool(
        "small", False, "A small demo: a few latents or pictures, seconds instead of minutes."
    ),
    "images": lambda: flags.DEFINE_string(
        "images",
        None,
        "What to work on: a folder (searched with its subfolders), a glob in quotes, or LIST.csv "
        "with the header path,target; on a disk, or in a store (gs://BUCKET/FOLDER). Without it: "
        "the embedded pictures, offline.",
    ),
    "model": lambda: flags.DEFINE_string(
        "model",
        None,
        "The network: a name (squeezenet1_1, demo, ...) or package.module:function that returns a "
        "perturb.Model. Default: demo, where --images is not given.",
    ),
    "generator": lambda: flags.DEFINE_string(
        "generator",
        None,
        "The generator: a name (tile_dcgan, svhn_dcgan, demo, ...) or package.module:function that "
        "returns a gan_dissect.Generator. Default: demo, embedded with its weights.",
    ),
    "generator_options": lambda: flags.DEFINE_string(
        "generator_options",
        None,
        "Options of a generator with a name, as JSON: '{\"crop\": [14, 16]}' for tile_dcgan, "
        '\'{"space": "w", "truncation": 0.7}\' for stylegan, \'{"label": 207}\' for biggan_deep.',
    ),
    "concepts": lambda: flags.DEFINE_string(
        "concepts",
        None,
        "What to look for: labels (of the generator), color:NAME,NAME,... (names or #rrggbb), "
        "edges, a folder of masks CONCEPT/NUMBER.png of the samples (of pictures: "
        "CONCEPT/PICTURE.png, and labelled/PICTURE.png where only some places are known; "
        "or label maps PICTURE.png with classes.txt or classes.json in the folder or beside it), "
        "TABLE.csv(path,CONCEPT,...) of pictures with 1 or 0, the file of a mask, or nothing where "
        "it is not known, or package.module:function that returns gan_dissect.Concepts. Default: "
        "labels; for the embedded generator its segmentation network.",
    ),
    "weights_sha256": lambda: flags.DEFINE_string(
        "weights_sha256", None, "SHA-256 that the weight file must have; another one is not opened."
    ),
    "weights": lambda: flags.DEFINE_string(
        "weights",
        None,
        "Weight file, FILE.safetensors (also .npz, .msgpack, .pth, a folder of Orbax), or "
        "hf:OWNER/NAME[@REVISION][:FILE] from the Hugging Face Hub (FILE is model.safetensors if "
        "not given). launch.convert makes one of .pth and .pkl files.",
    ),
    "rename": lambda: flags.DEFINE_string(
        "rename",
        None,
        "Other names for what is in the weight file, PATTERN=TEXT as in Python's re.sub, several "
        "separated by spaces, one after the other: '^net[.]= [.]w$=.weight'. What becomes empty is "
        "left out.",
    ),
    "input_size": lambda: flags.DEFINE_integer(
        "input_size",
        None,
        "Side in px of the pictures that a net with a name takes (MobileNets, ResNets, "
        "SqueezeNets). Default: the published one.",
        lower_bound=32,
    ),
    "class_names": lambda: flags.DEFINE_string(
        "class_names", None, "File with the class names: one a line, or JSON."
    ),
    "parity": lambda: flags.DEFINE_string(
        "parity",
        None,
        "FILE.npz with x (images in [0, 1]) and y (what the source framework gives for them): a "
        "model that does not reproduce y is refused.",
    ),
    "target": lambda: flags.DEFINE_string(
        "target",
        None,
        "Class to explain: top1 (the network's own answer), a class index, or csv (the column of "
        "the list). Default: csv where --images is a list with targets, else top1.",
    ),
    "layer": lambda: flags.DEFINE_string(
        "layer", None, "Name of the layer to work on; --list_layers shows them."
    ),
    "list_layers": lambda: flags.DEFINE_boolean(
        "list_layers", False, "Print the names and shapes of the layers, and end."
    ),
    "controls": lambda: flags.DEFINE_integer(
        "controls",
        12,
        "Random sets of as many units, or random directions, to compare with.",
        lower_bound=0,
    ),
    "seed": lambda: flags.DEFINE_integer("seed", 0, "Seed of all randomness.", lower_bound=0),
    "batch_size": lambda: flags.DEFINE_integer(
        "batch_size",
        16,
        "Masks worked on side by side on each of the process's devices, at least 2. Where they do "
        "not fit into its memory, half as many are tried.",
        lower_bound=2,
    ),
    "page_items": lambda: flags.DEFINE_integer(
        "page_items",
        200,
        "Images on a page of the report; where there are more, the first page shows the worst, the "
        "best and random ones and links to the rest.",
        lower_bound=3,
    ),
    "shard": lambda: flags.DEFINE_string(
        "shard",
        None,
        "k/K: do this part of the job; K processes that know nothing of each other do the whole. "
        "What is missing at the end is done by the same commands, or by one without --shard.",
    ),
    "multiprocess": lambda: flags.DEFINE_boolean(
        "multiprocess",
        False,
        "Run as one of many processes on a TPU slice, Kubernetes, Slurm or MPI, started together "
        "with the same command.",
    ),
    "coordinator": lambda: flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, where --multiprocess finds no cluster."
    ),
    "num_processes": lambda: flags.DEFINE_integer(
        "num_processes", None, "Number of processes, with --coordinator.", lower_bound=1
    ),
    "process_id": lambda: flags.DEFINE_integer(
        "process_id", None, "Number of this process from 0, with --coordinator.", lower_bound=0
    ),
    "profile_dir": lambda: flags.DEFINE_string(
        "profile_dir",
        None,
        "Folder for a trace of some steps after the first ones, of process 0 only; see it with "
        "xprof.",
    ),
    "max_error_rate": lambda: flags.DEFINE_float(
        "max_error_rate",
        0.01,
        "Share of the items that may fail; with more the exit code is 1: of six items the default "
        "lets none pass. All results are written either way.",
        lower_bound=0.0,
        upper_bound=1.0,
    ),
    "out": lambda: flags.DEFINE_string(
        "out",
        None,
        "Folder for the results, or an address in a store (gs://, s3://, az://), which is asked "
        "for 120 s while it is busy (PERTURB_STORE_SECONDS says another time). A repeated "
        "command continues what is there. Default: out/ and the launcher's name. Of launch.convert "
        "it is the file to write, by default the source's name with .safetensors.",
    ),
}


@functools.cache
def _define(name: str) -> flags.FlagHolder[Any]:
    return _DEFINITIONS[name]()


def shared(*names: str) -> tuple[flags.FlagHolder[Any], ...]:
    """Returns the holders of the shared flags `names`, defined on first use.

    >>> shared("seed")[0].name
    'seed'
    """
    holders = tuple(_define(name) for name in names)
    # Key flags are what `--help` shows of the launcher that was started.
    for name in names:
        flags.declare_key_flag(name)
    return holders


def given(*names: str) -> Record:
    """Returns the values of those of these shared flags that are set."""
    found = {name: _define(name).value for name in names}
    return {name: value for name, value in found.items() if value is not None}


def join() -> Place:
    """Joins the job as the flags of `JOB` say; call it before anything asks for a device."""
    return hosts.join(
        shard=_define("shard").value,
        multiprocess=_define("multiprocess").value,
        coordinator=_define("coordinator").value,
        processes=_define("num_processes").value,
        process=_define("process_id").value,
    )


def run_job(
    settings: Record,
    work: Callable[..., tuple[int, int] | None],
    write: Callable[[store.Path], store.Path],
) -> int:
    """Runs a job from its resolved settings and writes its page; returns the exit code.

    Args:
      settings: with `out`, the folder or address of the run.
      work: `(out, settings, place=, weights_sha256=)`, which returns how many of how many items
        failed, or None where other processes have still to finish.
      write: writes the page of a finished run and returns where it lies.
    """
    place = join()
    out = store.path(settings["out"])
    store.writable(out)
    done = work(out, settings, place=place, weights_sha256=_define("weights_sha256").value)
    # Whoever ends last writes the page.
    if done is None:
        logging.info("this process has done its share; the others have not finished theirs")
        return 0
    logging.info("done: %s", write(out))
    return verdict(*done)


def left_to_others(job: Run) -> bool:
    """Returns whether other processes have still to finish a job of images, and says how many."""
    if job.complete():
        return False
    logging.info(
        "this process has done its share; %d images are left to the others",
        len(job.manifest.items) - job.done(),
    )
    return True


def verdict(errors: int, items: int) -> int:
    """Returns the exit code of a job of which `errors` items failed: `FAILED` above
    --max_error_rate.
    """
    rate = _define("max_error_rate").value
    if errors > rate * items:
        # Up to what passes, or one bad picture of six would ask for 0.166667.
        enough = math.ceil(100 * errors / items) / 100
        logging.error(
            "exit code %d: %d of %d failed, and --max_error_rate=%g lets %d pass; the results of "
            "the others are written, --max_error_rate=%g accepts such a run",
            FAILED,
            errors,
            items,
            rate,
            int(rate * items),
            enough,
        )
        return FAILED
    if errors:
        logging.warning(
            "exit code 0: %d of %d failed, which --max_error_rate=%g lets pass", errors, items, rate
        )
    return 0


def one_line(error: BaseException) -> str:
    """Returns what went wrong as a single line.

    >>> one_line(FileNotFoundError(2, "No such file or directory", "a.png"))
    'a.png: No such file or directory'
    """
    if isinstance(error, OSError) and error.strerror:
        # The second name of a rename or a link is where the result was to be.
        name = error.filename2 or error.filename
        return f"{name}: {error.strerror}" if name else error.strerror
    return words.brief(str(error)) or type(error).__name__


@contextlib.contextmanager
def _in_place(own: flags.FlagValues | None) -> Iterator[None]:
    """Lets a launcher's own flags stand for those of the same name that another launcher
    defines.
    """
    names = list(own) if own is not None else []
    # Absl knows only one flag of a name in a process; what was there before comes back at the end.
    displaced = {name: flags.FLAGS[name] for name in names if name in flags.FLAGS}
    try:
        for name in names:
            if name in displaced:
                delattr(flags.FLAGS, name)
            flags.FLAGS[name] = own[name]  # type: ignore[index]
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
        if own is not None:
            own.mark_as_parsed()
        yield
    finally:
        for name in names:
            own[name].unparse()  # type: ignore[index]
            delattr(flags.FLAGS, name)
        for name, flag in displaced.items():
            flags.FLAGS[name] = flag


def run(
    main: Callable[[], int | None],
    argv: Sequence[str] | None = None,
    own: flags.FlagValues | None = None,
) -> None:
    """Parses the flags, runs `main()` and exits with what it returns.

    `own` are flags of this launcher alone, defined with `flag_values=`: two launchers may then give
    one name another meaning.

    `ValueError` and `OSError` mean input that cannot be used: one line on stderr, exit code 2, and
    the traceback only with `--verbosity=1`. Any other exception is a defect and keeps its
    traceback.
    """

    def guarded(rest: Sequence[str]) -> int | None:
        if rest[1:]:
            return _stop(f"{rest[1]!r} is not a flag: settings are written --name=value")
        # JAX's own notes on the back ends it did not find would drown the progress lines.
        python_logging.getLogger("jax").setLevel(python_logging.WARNING)
        try:
            # A launcher has a bar of its own, and goes on where it was stopped.
            with progress.quiet():
                return main()
        except KeyboardInterrupt:
            # What is committed stays; there is nothing to clean up.
            print("stopped; the same command continues from here", file=sys.stderr)
            return STOPPED
        except BaseException as error:
            if faults.leaving(error):
                print("asked to stop; the same command continues from here", file=sys.stderr)
                return faults.PREEMPTED
            if not isinstance(error, (ValueError, OSError)):
                raise
            logging.vlog(1, "%s", traceback.format_exc())
            # A full disk, or a busy store, is cured from outside, and then nothing is lost.
            cured = isinstance(error, OSError) and error.errno in faults.FULL
            cured = cured or isinstance(error, clients.Busy)
            more = "; the same command continues" if cured else ""
            return _stop(words.as_flags(one_line(error), set(flags.FLAGS)) + more)

    with _in_place(own):
        app.run(guarded, argv=list(argv) if argv is not None else None, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        if {"--help", "-help", "-h", "--helpshort", "-?"} & {a.split("=")[0] for a in argv[1:]}:
            # The launcher's own docstring is the head of its help.
            main = sys.modules["__main__"]
            own = flags.FLAGS.get_key_flags_for_module(argv[0])
            print(help.text(main.__doc__ or "", own), end="")
            sys.exit(0)
        _refuse_repeated(argv)
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(_stop(one_line(error)))
    except RecursionError:  # of absl's search for the nearest name
        names = (a.partition("=")[0] for a in argv[1:] if a.startswith("-"))
        sys.exit(_stop(f"there is no flag {max(names, key=len, default='')[:60]}..."))
    except SystemExit:  # --help and its relatives, which absl ends with 1
        sys.exit(0)


def _refuse_repeated(argv: Sequence[str]) -> None:
    """Refuses a flag given twice: absl would silently take the last. A --flagfile may be
    overridden.
    """
    seen: set[str] = set()
    for argument in argv[1:]:
        if argument == "--":
            return
        name = argument.lstrip("-").split("=", 1)[0]
        if not argument.startswith("-") or name not in flags.FLAGS or name == "flagfile":
            continue
        if name in seen:
            raise flags.Error(f"flag --{name} is given twice")
        seen.add(name)


def _stop(message: str) -> int:
    print(f"error: {words.brief(message)}", file=sys.stderr)
    return BAD_INPUT
