"""The direction that a command line names: a file, the boundary of an attribute, or a strong
factor.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import gan_dissect
from gan_dissect import factors
from gan_dissect.nets import boundaries
from launch import generators
from perturb import messages
from perturb.types import Record

__all__ = ["THROUGH", "Found", "area", "find", "numbers", "score_samples", "scorers", "waypoints"]

# Prefix of a path through given latents, which has no direction.
THROUGH = "through:"


class Found(NamedTuple):
    """A direction and what is known about it.

    Attributes:
      normal: `[D]`, of length 1, or `[layers, D]`.
      intercept: of the boundary, 0 where there is none.
      facts: words and numbers for records and pages.
    """

    normal: np.ndarray
    intercept: float
    facts: Record


def scorers(asked: str | None, generator: gan_dissect.Generator) -> gan_dissect.Concepts | None:
    """Returns what frames are scored by: the concepts asked for, the embedded predictors, the
    generator's labels, or nothing.
    """
    if asked is None and generator.name == "demo":
        asked = "launch.demo:attributes"
    if asked is None and not generator.label_names:
        return None
    found = generators.concepts(asked, generator)
    if found is None:
        raise ValueError(f"--concepts={asked}: masks of given samples cannot score a walk")
    return found


def find(
    settings: Record,
    generator: gan_dissect.Generator,
    concepts: gan_dissect.Concepts | None,
    key: jax.Array,
) -> Found:
    """Returns the direction that `--direction` names.

    Args:
      settings: as `launch.walk` resolves them.
      generator: of latents `[D]`.
      concepts: what attributes are scored by; None for none.
      key: of the latents that walk; directions are found on others.
    Raises:
      ValueError: if it does not exist, or is for latents of another size.
    """
    size = generators.vector_size(generator)
    kind, _, rest = settings["direction"].partition(":")
    if kind == "attribute" and rest:
        return _attribute(rest, settings, generator, concepts, key)
    if kind in ("sefa", "ganspace") and rest.isdecimal():
        return _factor(kind, int(rest), settings, generator, key)
    path = settings["direction"]
    if not path.endswith((".npy", ".npz", ".pt", ".pth")):
        raise ValueError(
            f"--direction={path}: expected a .npy, .npz or .pt file, attribute:NAME, sefa:K, "
            "ganspace:K or through:K"
        )
    # Published files hold no intercept; a walk that starts from a latent needs none.
    boundary = boundaries.read_boundary(path, size=size)
    shape = jax.eval_shape(generator.draw, jax.random.key(0)).shape
    # Of a file with a direction a layer there must be as many as the generator has layers.
    if boundary.normal.ndim != 1 and boundary.normal.shape != shape:
        raise ValueError(
            f"--direction={path}: holds {len(boundary.normal)} directions, one a layer; "
            f"latents of {generator.name} are {list(shape)}"
        )
    facts: Record = {"kind": "file", "name": pathlib.Path(path).name}
    if boundary.layers:
        facts["layers"] = list(boundary.layers)
    return Found(boundary.normal, 0.0, facts)


def waypoints(
    settings: Record, generator: gan_dissect.Generator, key: jax.Array
) -> Callable[[int], np.ndarray]:
    """Returns the latents `[P, ...]` that a walk passes, by its number: drawn, or those of a file.

    Args:
      settings: as `launch.walk` resolves them, with `through:K` or `through:FILE.npy`.
      generator: of latents `[D]` or `[layers, D]`.
      key: of the run; the latents are drawn from another.
    Raises:
      ValueError: if there are fewer than two latents, more than frames, or of another size.
    """
    said, shape = settings["direction"], _latent(generator)
    rest = said.removeprefix(THROUGH)
    if rest.isdecimal():
        count = int(rest)
        _enough(said, count, settings["frames"])
        # Of a key that neither the latents of walks along a direction nor its fit have.
        drawn = jax.random.fold_in(key, 2**31 + 5)
        return lambda walk: np.asarray(
            gan_dissect.sample(generator, drawn, count, start=walk * count)
        )
    if not rest.endswith(".npy"):
        raise ValueError(
            f"--direction={said}: expected the number of latents, as in through:4, or a .npy of "
            "them, as in through:latents.npy"
        )
    if not pathlib.Path(rest).is_file():
        raise ValueError(f"--direction={said}: there is no file {rest}")
    try:
        points = np.asarray(np.load(rest, allow_pickle=False))
    except ValueError as error:
        raise ValueError(
            f"--direction={said}: not an array of numbers; write it with numpy.save"
        ) from error
    if points.shape[1:] != shape or points.dtype.kind not in "fiu":
        raise ValueError(
            f"--direction={said}: must hold latents [P, {', '.join(map(str, shape))}], has "
            f"{list(points.shape)} of {points.dtype}"
        )
    if not np.isfinite(points).all():
        raise ValueError(f"--direction={said}: latents must be finite, has NaN or infinite values")
    _enough(said, len(points), settings["frames"])
    return lambda walk: points


def _latent(generator: gan_dissect.Generator) -> tuple[int, ...]:
    # Called first for its error, which says what to do with latents of another kind.
    generators.vector_size(generator)
    found: tuple[int, ...] = jax.eval_shape(generator.draw, jax.random.key(0)).shape
    return found


def _enough(said: str, count: int, frames: int) -> None:
    if not 2 <= count <= frames:
        raise ValueError(
            f"--direction={said}: a path passes at least 2 latents and has a frame for each, got "
            f"{count} and --frames={frames}"
        )


def _attribute(
    name: str,
    settings: Record,
    generator: gan_dissect.Generator,
    concepts: gan_dissect.Concepts | None,
    key: jax.Array,
) -> Found:
    if concepts is None:
        raise ValueError(
            f"--direction=attribute:{name}: --concepts is missing, which says what that is"
        )
    if name not in concepts.names:
        near = messages.nearest(name, concepts.names, cutoff=0.0)
        raise ValueError(
            f"--direction=attribute:{name}: no such concept, the nearest is {near!r}; known: "
            f"{messages.listed(concepts.names)}"
        )
    # Latents of another key: none of those that walk was fitted on.
    fit = jax.random.fold_in(key, 2**31 + 3)
    latents, scores = score_samples(
        generator, concepts, fit, settings["fit_samples"], settings["batch_size"]
    )
    # Errors of the library name its arguments; here they are put under the flag that was given.
    try:
        latents = one_a_sample(latents)
        found = gan_dissect.attribute_direction(latents, scores[:, concepts.names.index(name)])
    except ValueError as error:
        raise ValueError(f"--direction=attribute:{name}: {error} (--fit_samples)") from error
    facts: Record = {
        # Rounded, for these facts are compared when a run is continued, on another machine perhaps.
        field: float(f"{float(getattr(found, field)):.6g}")
        for field in ("auc_test", "auc_low", "auc_high", "accuracy_test", "extremes")
    }
    facts |= {"scored": len(latents) - int(found.left_out), "left_out": int(found.left_out)}
    return Found(found.normal, float(found.intercept), {"kind": "attribute", "name": name, **facts})


def _factor(
    kind: str, k: int, settings: Record, generator: gan_dissect.Generator, key: jax.Array
) -> Found:
    if k < 1:
        raise ValueError(f"--direction={kind}:{k}: directions are counted from 1")
    chosen = settings.get("layers")
    mapped = isinstance(generator.latent, gan_dissect.Mapped)
    # As published: of a StyleGAN the components are those of w, not of a layer.
    if not settings["layer"] and (kind == "ganspace" and mapped):
        return _of_styles(k, settings, generator, key)
    apply: Any = generator.apply
    published = factors.style_layers(generator) or hasattr(apply, "first_weight")
    plain = not settings["layer"] and kind == "sefa" and published
    if plain:
        layer = "the first layer"
        if factors.style_layers(generator):
            layer = f"layers {_spans(chosen)}" if chosen else "all layers"
    else:
        known = gan_dissect.layers(generator)
        # The first layer is before the first activation in most networks, as SeFa needs it.
        layer = settings["layer"] or next(iter(known))
        if layer not in known:
            raise generators.no_such_layer(generator, layer)
    try:
        if plain:
            found = factors.sefa(factors.sefa_weight(generator, chosen), k=k)
        elif kind == "sefa":
            found = factors.sefa(factors.layer_weight(generator, layer), k=k)
        else:
            found = factors.ganspace_layer(
                generator,
                layer,
                k=k,
                samples=settings["fit_samples"],
                key=key,
                batch_size=settings["batch_size"],
            )
    except ValueError as error:
        raise ValueError(f"--direction={kind}:{k}: {error}") from error
    facts = {
        "kind": kind,
        "name": f"{kind} {k}",
        "layer": layer,
        "share": float(found.share[k - 1]),
    }
    return Found(found.directions[k - 1], 0.0, facts)


def _of_styles(k: int, settings: Record, generator: gan_dissect.Generator, key: jax.Array) -> Found:
    """The published GANSpace of a StyleGAN: the components of its styles themselves."""
    drawn = [
        np.asarray(gan_dissect.sample(generator, key, settings["batch_size"], start=start))
        for start in range(0, settings["fit_samples"], settings["batch_size"])
    ]
    styles = one_a_sample(np.concatenate(drawn)[: settings["fit_samples"]])
    try:
        found = factors.ganspace(styles, k=k)
    except ValueError as error:
        raise ValueError(f"--direction=ganspace:{k}: {error}") from error
    share = float(found.share[k - 1])
    facts = {"kind": "ganspace", "name": f"ganspace {k}", "layer": "the styles", "share": share}
    return Found(found.directions[k - 1], 0.0, facts)


def one_a_sample(latents: np.ndarray) -> np.ndarray:
    """Returns latents `[N, D]`; of those of layers, `[N, layers, D]`, their mean."""
    # Layers of w+ are drawn alike but for truncation: their mean stands for the sample.
    return latents if latents.ndim == 2 else latents.mean(1)


def numbers(text: str | None) -> list[int] | None:
    """Returns the layers that a command line gives, `0-5,8`; None for none.

    >>> numbers("0-2,5"), numbers(None)
    ([0, 1, 2, 5], None)
    """
    if text is None:
        return None
    found: list[int] = []
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        ends = (first, last if dash else first)
        if not all(end.isdecimal() for end in ends) or int(ends[0]) > int(ends[1]):
            raise ValueError(f"--layers={text}: expected numbers and ranges of layers, like 0-5,8")
        found += range(int(ends[0]), int(ends[1]) + 1)
    # Each once, in the order given.
    return list(dict.fromkeys(found))


def _spans(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def score_samples(
    generator: gan_dissect.Generator,
    scores: gan_dissect.Concepts,
    key: jax.Array,
    count: int,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns latents `[count, D]` of a key and their scores `[count, concepts]`; masks score their
    area.
    """
    return _samples(functools.partial(_scored, scores), generator, key, count, batch_size)


def _samples(
    function: Any, generator: gan_dissect.Generator, key: jax.Array, count: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    latents, found = [], []
    for start in range(0, count, batch_size):
        # Whole batches, cut at the end: a shorter last one would be another program.
        z = gan_dissect.sample(generator, key, batch_size, start=start)
        latents.append(np.asarray(z))
        found.append(np.asarray(function(generator, z)))
    return np.concatenate(latents)[:count], np.concatenate(found)[:count]


@jax.jit
def _scored(
    scores: gan_dissect.Concepts, generator: gan_dissect.Generator, z: jax.Array
) -> jax.Array:
    return area(scores, generator(z))


def area(scores: gan_dissect.Concepts, outputs: dict[str, jax.Array]) -> jax.Array:
    """Returns scores `[B, concepts]`; a mask scores the share of the picture that it covers."""
    found = scores(outputs)
    return found.mean((1, 2)) if scores.kind == "masks" else found
