"""The network that a command line names, and what identifies it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import pathlib
from typing import Any

import jax
import numpy as np

import perturb
from launch import flags, hub
from launch.job import store
from perturb import inputs, messages
from perturb.types import Record

__all__ = [
    "answers",
    "check",
    "check_settings",
    "check_sha256",
    "check_there",
    "class_names",
    "describe",
    "fingerprint",
    "list_layers",
    "load",
    "parity_file",
    "rules",
    "user_function",
    "weight_file",
]

EMBEDDED = ("demo", "demo_cheat", "demo_vit")


def load(
    name: str,
    *,
    weights: str | None = None,
    names_file: str | None = None,
    sha256: str | None = None,
    rename: str | None = None,
    input_size: int | None = None,
) -> perturb.Model:
    """Returns the model that `--model`, `--weights`, `--class_names`, `--rename` and
    `--input_size` ask for.

    Args:
      name: a net's name, or `package.module:function`; the function takes no argument, or `weights`
        where a weight file is given, and returns a `perturb.Model`.
      weights: a file, or `hf:OWNER/NAME[@REVISION][:FILE]`, see `launch.hub`.
      sha256: that the weight file must have, in hex; it is opened only then.
    Raises:
      ValueError: naming what is wrong with the name, the function or the files.
    """
    names = class_names(names_file) if names_file else ()
    weights = weight_file(weights, sha256)
    for flag, value in (("rename", rename), ("input_size", input_size)):
        if value is not None and (":" in name or name in EMBEDDED):
            raise ValueError(f"--{flag} is for nets of perturb.load_model, {name} takes none")
    if ":" in name:
        model = user_function("model", name, perturb.Model, weights)
    elif name in EMBEDDED:
        if weights:
            raise ValueError(f"--weights: the model {name} carries its own weights")
        from launch import demo

        model = demo.load(name)
    else:
        if weights:
            check_there(weights)
        model = perturb.load_model(
            name, weights=weights, class_names=names, rename=rules(rename), size=input_size
        )
    found: perturb.Model = dataclasses.replace(model, class_names=names) if names else model
    return found


def rules(text: str | None) -> dict[str, str] | None:
    """Returns the patterns of `--rename` and what takes their place.

    >>> rules("^net[.]= [.]w$=.weight")
    {'^net[.]': '', '[.]w$': '.weight'}
    """
    if text is None:
        return None
    found = {}
    for rule in text.split():
        # No name of a tensor has an equals sign; a pattern may.
        pattern, sign, put = rule.rpartition("=")
        if not sign or not pattern:
            raise ValueError(f"--rename={text}: expected PATTERN=TEXT, like '^net[.]='")
        found[pattern] = put
    return found


def weight_file(weights: str | None, sha256: str | None) -> str | None:
    """Returns where the weight file of a command line lies, whether here or on the Hub.

    Raises:
      ValueError: if it cannot be fetched, or its SHA-256 is not `sha256`, where that is given.
    """
    path = hub.local(weights)
    if sha256:
        # Before the file is parsed: a reader of weights is not to meet bytes that nobody
        # vouches for.
        check_sha256(path, sha256)
    return path


def check_there(weights: str) -> None:
    """Refuses a weight file, or a folder of weights, that does not exist."""
    path = store.path(weights)
    if not (path.is_file() or path.is_dir()):
        raise ValueError(f"--weights={weights}: no such file")


def check_sha256(path: str | None, sha256: str) -> None:
    """Refuses a weight file that is not the one whose SHA-256 is given.

    Raises:
      ValueError: if it has another, or there is no file.
    """
    if not path or not store.path(path).is_file():
        raise ValueError(f"--weights_sha256 needs --weights=FILE, got {path}")
    with store.path(path).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    if found != sha256.lower():
        raise ValueError(f"--weights_sha256={sha256}: {path} has {found}; it is another file")


def class_names(path: str) -> tuple[str, ...]:
    """Returns the class names of a file, in order of the classes.

    One name a line; or JSON: a list, or an object from class number to a name, to `{"name": ...}`
    or to `[id, name]`.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
        if not path.endswith(".json"):
            return tuple(line.strip() for line in text.strip().splitlines())
        data = json.loads(text)
        if isinstance(data, dict):
            # An object from numbers to names is in any order; a missing number is an error.
            data = [data[str(i)] for i in range(len(data))]
        return tuple(_name(entry) for entry in data)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ValueError(
            f"--class_names={path}: expected one name a line, or JSON with a list or with an "
            'object from "0", "1", ... to names'
        ) from error


def fingerprint(model: Any) -> str:
    """Returns a SHA-256 over a model's or a generator's weights: path in the pytree, type, shape
    and bytes of every leaf.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.variables):
        # The same numbers in another memory layout are the same weights.
        array = np.ascontiguousarray(leaf)
        # With the path: two layers that exchange their weights are another network.
        head = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n"
        digest.update(head.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def describe(model: perturb.Model, weights: str | None = None) -> Record:
    """Returns what a run records of its model, and compares when it is continued.

    Args:
      weights: as given to `load`; where they come from the Hub, their revision and hash are
        recorded.
    """
    names = hashlib.sha256(json.dumps(model.class_names).encode()).hexdigest()
    return {
        "name": model.name,
        "fingerprint": fingerprint(model),
        "hub": hub.source(weights),
        "class_names_sha256": names if model.class_names else None,
        "output": model.output,
        "geometry": [list(step) for step in model.geometry.steps] if model.geometry else None,
        "answers": answers(model),
    }


def answers(model: perturb.Model) -> list[float] | None:
    """Returns what the model gives for four fixed pictures: 16 numbers spread over its first
    output.

    Weights may be the same bytes and the function around them another one: other preprocessing,
    another order of channels. None where the size of its pictures is not fixed, or it takes none.
    """
    size = model.geometry.size if model.geometry else None
    if size is None:
        return None
    # Fixed for all time: the answers are compared with those of earlier runs.
    noise = np.random.default_rng(0).integers(0, 256, (4, 8, 8, model.channels))
    rows, columns = (np.arange(n) * 8 // n for n in size)
    # Coarse squares: pixel noise says little to a network that pools.
    probes = (noise[:, rows][:, :, columns] / 255).astype(np.float32)
    try:
        first = np.asarray(
            jax.tree.leaves(jax.jit(lambda m, x: m(x))(model, probes))[0], np.float64
        )
    except Exception:  # what is wrong with the model is said by `check`, in its own words
        return None
    flat = first.reshape(-1)
    found = flat[np.linspace(0, flat.size - 1, 16).astype(int)]
    # Six digits: more would be rounding of the machine.
    return [float(f"{v:.6g}") for v in found] if np.isfinite(found).all() else None


def check(model: perturb.Model, images: np.ndarray, parity: str | None) -> int | None:
    """Refuses a model that cannot be trusted; returns its number of classes, if it has classes.

    Args:
      images: `[B, H, W, C]` in [0, 1], a batch of the run.
      parity: an `.npz` with `x` and `y` from the source framework, or None.
    Raises:
      ValueError: see `perturb.check_model` and `perturb.check_parity`.
    """
    try:
        outputs = perturb.check_model(model, images)
    except ValueError:
        raise
    except Exception as error:  # whatever the network itself raises on shapes it cannot take
        raise ValueError(
            f"model {model.name} does not run on images of shape {images.shape[1:]}: "
            f"{type(error).__name__}: {flags.one_line(error)}"
        ) from error
    if parity:
        perturb.check_parity(model, *parity_file(parity))
    if model.output not in perturb.rewards.CLASSES:
        return None
    classes = perturb.scores.number_of_targets(model.output, outputs[0])
    _check_names(model, classes)
    return classes


def _check_names(model: perturb.Model, classes: int) -> None:
    """Refuses class names that are not as many as the classes."""
    if model.class_names and len(model.class_names) != classes:
        raise ValueError(
            f"model {model.name} has {classes} classes but {len(model.class_names)} class names"
            + (
                "; output='binary' is for a yes or no"
                if (classes, len(model.class_names)) == (1, 2)
                else ""
            )
        )


# Sides tried for a network that says nothing of its pictures' size.
_SIDE = 224


def _shapes(model: perturb.Model) -> jax.ShapeDtypeStruct:
    size = (model.geometry.size if model.geometry else None) or (_SIDE, _SIDE)
    return jax.ShapeDtypeStruct((2, *size, model.channels), np.float32)


def list_layers(model: perturb.Model) -> int:
    """Prints the layers of a network with their shapes, one a line; returns the exit code."""
    for name, found in perturb.taps.names(model, _shapes(model)).items():
        print(f"{name}  [B, {', '.join(map(str, found.shape[1:]))}]")
    return 0


def check_settings(
    model: perturb.Model,
    *,
    layer: str | None = None,
    reward: str | None = None,
    target: str | None = None,
) -> None:
    """Refuses, before anything is compiled, what the network does not have.

    Args:
      layer, reward, target: as the command line gives them, or None.
    Raises:
      ValueError: naming the flag, with the nearest name.
    """
    if reward:
        perturb.rewards.check(perturb.rewards.get(reward), model)
    if target and target not in ("top1", "csv") and not target.isdecimal():
        if not model.class_names:
            raise ValueError(
                f"--target={target}: expected top1, csv or a class index; names need "
                "--class_names=FILE"
            )
        try:
            inputs.named(model, target)
        except ValueError as error:
            hint = messages.did_you_mean(target, model.class_names)
            raise ValueError(
                f"--target={target}: expected top1, csv, a class index or a class name{hint}; "
                f"known: {messages.listed(model.class_names, 100)}"
            ) from error
    # Nothing left that would need the network's shapes.
    if not layer and not (target or "").isdecimal() and not model.class_names:
        return
    try:
        given = _shapes(model)
        known = perturb.taps.names(model, given) if layer else {}
        row = jax.tree.map(
            lambda y: jax.ShapeDtypeStruct(y.shape[1:], y.dtype), jax.eval_shape(model, given)
        )
        classes = perturb.scores.number_of_targets(model.output, row)
    except Exception:  # pictures of another size: what is wrong is said with the first of them
        return
    if layer and layer not in known:
        near = messages.nearest(layer, known, cutoff=0.0)
        raise ValueError(
            f"--layer={layer}: model {model.name} has no such layer, the nearest is {near!r}; "
            f"--list_layers shows all {len(known)}"
        )
    if model.class_names and model.output in perturb.rewards.CLASSES:
        _check_names(model, classes)
    if target and target.isdecimal() and int(target) >= classes:
        raise ValueError(f"--target={target}: must be below the model's {classes} classes")


def user_function(flag: str, name: str, kind: type, weights: str | None = None) -> Any:
    """Returns what `package.module:function` returns, which must be a `kind`.

    Args:
      flag: that named it, for errors.
      name: the function takes no argument, or `weights` where a weight file is given.
      kind: class of what is expected.
    """
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"--{flag}={name}: cannot import {module_name}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"--{flag}={name}: {module_name} has no function {function_name!r}")
    try:
        # A function that takes no weights must not be made to.
        found = function(weights=weights) if weights else function()
    except Exception as error:
        raise ValueError(
            f"--{flag}={name}: {function_name}() raised {type(error).__name__}: "
            f"{flags.one_line(error)}"
        ) from error
    if not isinstance(found, kind):
        raise ValueError(
            f"--{flag}={name}: {function_name}() returned {type(found).__name__}, "
            f"expected a {kind.__module__.partition('.')[0]}.{kind.__name__}"
        )
    return found


def parity_file(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y of a file of `--parity`.

    Raises:
      ValueError: if it is none.
    """
    try:
        # A pickle runs code when it is opened.
        with np.load(path, allow_pickle=False) as file:
            return file["x"], file["y"]
    except (ValueError, KeyError, OSError, EOFError, AttributeError, TypeError) as error:
        raise ValueError(f"--parity={path}: expected an .npz file with x and y") from error


def _name(entry: Any) -> str:
    if isinstance(entry, dict):
        return str(entry["name"])
    if isinstance(entry, (list, tuple)):
        return str(entry[-1])
    return str(entry)
