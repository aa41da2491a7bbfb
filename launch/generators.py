"""The generator and the concepts that a command line names, and what identifies them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gan_dissect
from gan_dissect import concepts as kinds
from launch import hub, models
from perturb import messages
from perturb.types import Options, PyTree, Record, Variables
from perturb.weights import prefixes, read_tensors

__all__ = [
    "check",
    "colours",
    "concepts",
    "describe",
    "describe_masks",
    "folder",
    "list_layers",
    "load",
    "no_such_layer",
    "of",
    "vector_size",
    "with_masks",
]

TOLERANCE = 0.25  # of colour concepts, largest difference in a channel


def of(settings: Options, sha256: str | None) -> gan_dissect.Generator:
    """Returns the generator of a job's resolved settings, see `load`.

    Args:
      settings: with `generator`, `weights` and, where the job has it, `generator_options`.
      sha256: that the weight file must have.
    """
    return load(
        settings["generator"],
        weights=settings["weights"],
        sha256=sha256,
        options=settings.get("generator_options"),
        rename=settings.get("rename"),
    )


def load(
    name: str,
    *,
    weights: str | None = None,
    sha256: str | None = None,
    options: str | None = None,
    rename: str | None = None,
) -> gan_dissect.Generator:
    """Returns the generator that `--generator`, `--weights`, `--generator_options` and `--rename`
    ask for, checked.

    Args:
      sha256: that the weight file must have, in hex; it is opened only then.
    Raises:
      ValueError: naming what is wrong with the name, the function, the file or the generator.
    """
    weights = models.weight_file(weights, sha256)
    # A mistake in the options is reported before the network is built.
    given, rules = _options(options), models.rules(rename)
    if rules and (":" in name or not weights):
        raise ValueError(
            f"--rename is for nets of gan_dissect.load_generator with --weights, not for {name}"
        )
    if given and (":" in name or (name == "demo" and not weights)):
        raise ValueError(
            f"--generator_options are for the nets of gan_dissect.load_generator, {name} takes none"
        )
    if ":" in name:
        generator = models.user_function("generator", name, gan_dissect.Generator, weights)
    elif name == "demo" and not weights:
        from launch import demo

        generator = demo.load_generator()
    elif name not in gan_dissect.nets.NAMES:
        if weights:
            return gan_dissect.load_generator(name, weights=weights)  # which refuses the name
        near = messages.did_you_mean(name, gan_dissect.nets.NAMES)
        raise ValueError(
            f"--weights is missing, and --generator={name} is no generator's name{near}; known: "
            f"{messages.listed(gan_dissect.nets.NAMES, 150)}"
        )
    elif not weights:
        raise ValueError(
            f"--weights is missing: the generator {name} needs --weights=FILE.safetensors"
        )
    else:
        models.check_there(weights)
        try:
            tensors: Any = weights
            if rules:
                tensors = prefixes.renamed(read_tensors(weights), rules)
            generator = gan_dissect.load_generator(name, weights=tensors, **given)
        except TypeError as error:  # an option of another kind, such as a text for a number
            raise ValueError(f"--generator_options={options}: {error}") from error
    gan_dissect.check_generator(generator)
    found: gan_dissect.Generator = generator
    return found


def _options(text: str | None) -> Record:
    """Returns the options that a command line gives as JSON."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:  # nested too deep, or a number of 5,000 digits
        raise ValueError(f"--generator_options={text}: not JSON ({error})") from error
    # These are flags of their own, or, as `key`, would draw random weights.
    taken = {"name", "weights", "key"} & set(found) if isinstance(found, dict) else ()
    if not isinstance(found, dict) or taken:
        raise ValueError(
            f"--generator_options={text}: expected an object of a net's options, "
            'like {"truncation": 0.7}, without name, weights and key'
        )
    return found


def concepts(asked: str | None, generator: gan_dissect.Generator) -> gan_dissect.Concepts | None:
    """Returns what `--concepts` asks for; None for a folder of masks, which `folder` reads.

    Raises:
      ValueError: naming what is wrong with the flag, or that the concepts do not fit the generator.
    """
    if asked is None:
        asked = "launch.demo:segments" if generator.name == "demo" else "labels"
    if asked == "labels":
        found = kinds.labels(generator)
    elif asked == "edges":
        found = kinds.edges()
    elif asked.startswith("color:"):
        found = kinds.colours(colours(asked.removeprefix("color:")), tolerance=TOLERANCE)
    # Before the colon: a path may hold one too.
    elif pathlib.Path(asked).is_dir():
        return None
    elif ":" in asked:
        found = models.user_function("concepts", asked, gan_dissect.Concepts)
    else:
        raise ValueError(
            f"--concepts={asked}: expected labels, edges, color:NAME, package.module:function or a "
            "folder of masks, and there is no such folder"
        )
    check(generator, found)
    return found


def check(generator: gan_dissect.Generator, found: gan_dissect.Concepts) -> None:
    """Refuses concepts that do not fit the generator: another size of image, other channels."""
    # On shapes alone: nothing is drawn to find out whether the two fit.
    batch = jax.eval_shape(lambda k: gan_dissect.sample(generator, k, 2), jax.random.key(0))
    try:
        jax.eval_shape(lambda g, c, z: c(g(z)), generator, found, batch)
    except ValueError:
        raise
    except Exception as error:  # whatever a network raises on shapes it cannot take
        image = jax.eval_shape(lambda g, z: g(z), generator, batch)["image"]
        raise ValueError(
            f"--concepts: {', '.join(found.names[:3])} cannot be found in images of shape "
            f"{list(image.shape[1:])}: {' '.join(str(error).split())[:200]}"
        ) from error


def colours(text: str) -> dict[str, tuple[float, ...]]:
    """Returns `{name: (r, g, b)}` in [0, 1] of names (CSS) or #rrggbb, separated by commas.

    >>> colours("lime,#ff0000")
    {'lime': (0.0, 1.0, 0.0), '#ff0000': (1.0, 0.0, 0.0)}
    """
    import PIL.ImageColor

    found = {}
    for name in filter(None, text.split(",")):
        try:
            found[name] = tuple(v / 255 for v in PIL.ImageColor.getrgb(name)[:3])
        except ValueError:
            raise ValueError(
                f"--concepts=color:{text}: {name!r} is no colour; give names like red, or #rrggbb"
            ) from None
    if not found:
        raise ValueError("--concepts=color: give at least one colour, like color:red")
    return found


def folder(
    path: str, generator: gan_dissect.Generator, samples: int
) -> tuple[tuple[str, ...], Any]:
    """Returns names and masks `[samples, H, W, concepts]` of a folder `CONCEPT/NUMBER.png`.

    NUMBER is the index of a sample; a mask is white where the concept is; one that is missing is
    empty.

    Raises:
      ValueError: if there is no mask, or one has another size than the images or no number.
    """
    import PIL.Image

    one = jax.eval_shape(generator.draw, jax.random.key(0))
    batch = jax.tree.map(lambda s: jax.ShapeDtypeStruct((2, *s.shape), s.dtype), one)
    size = jax.eval_shape(lambda g, z: g(z), generator, batch)["image"].shape[1:3]
    names = sorted(p.name for p in pathlib.Path(path).iterdir() if p.is_dir())
    # A mask that has no file is empty: most concepts are in few samples.
    masks = np.zeros((samples, *size, len(names)), bool)
    seen = 0
    for i, name in enumerate(names):
        for file in sorted(pathlib.Path(path, name).glob("*.png")):
            if not file.stem.isdecimal():
                raise ValueError(f"--concepts: {file} must be named by the number of its sample")
            if int(file.stem) >= samples:
                continue
            with PIL.Image.open(file, formats=("PNG",)) as image:
                # Half of white, for masks that were smoothed when they were resized.
                mask = np.asarray(image.convert("L")) > 127
            if mask.shape != size:
                raise ValueError(
                    f"--concepts: {file} has {mask.shape[1]} x {mask.shape[0]} px, the generator's "
                    f"images have {size[1]} x {size[0]}"
                )
            masks[int(file.stem), ..., i] = mask
            seen += 1
    if not seen:
        raise ValueError(
            f"--concepts={path}: no mask CONCEPT/NUMBER.png of samples 0 to {samples - 1}"
        )
    return tuple(names), masks


def with_masks(
    generator: gan_dissect.Generator, names: tuple[str, ...], size: tuple[int, ...]
) -> tuple[gan_dissect.Generator, gan_dissect.Concepts]:
    """Returns a generator whose latents carry masks along, and the concepts that read them.

    Args:
      generator: of latents z; the new one takes `{"latent": z, "masks": [B, H, W, concepts]}`.
      names: of the concepts.
      size: `(H, W)` of its images.
    """
    carry = dataclasses.replace(
        generator,
        apply=_Carry(generator.apply),
        # The masks ride along with the latents, so that every pass over samples finds them
        # in the outputs.
        latent=gan_dissect.Mapped(_same, _CarryLatent(generator.latent, (*size, len(names)))),
    )
    return carry, gan_dissect.Concepts(_carried, names)


@dataclasses.dataclass(frozen=True)
class _Carry:
    apply: Any

    def __call__(self, variables: Variables, latents: PyTree) -> Record:
        return {**self.apply(variables, latents["latent"]), "masks": latents["masks"]}


@dataclasses.dataclass(frozen=True)
class _CarryLatent:
    latent: PyTree
    shape: tuple[int, ...]

    def __call__(self, variables: Variables, key: jax.Array) -> Any:
        mapped = isinstance(self.latent, gan_dissect.Mapped)
        latent = self.latent(key, variables) if mapped else self.latent(key)
        # Never seen: samples are given, not drawn. The shapes have to be right all the same.
        return {"latent": latent, "masks": jnp.zeros(self.shape, bool)}


def _same(key: jax.Array) -> jax.Array:
    return key


def _carried(variables: Variables, outputs: dict[str, jax.Array]) -> jax.Array:
    return outputs["masks"]


def describe(
    generator: gan_dissect.Generator,
    found: gan_dissect.Concepts | None,
    weights: str | None = None,
) -> Record:
    """Returns what a run records of its generator and concepts, and compares when it is continued.

    Args:
      weights: as given to `load`; where they come from the Hub, their revision and hash are
        recorded.
    """
    shapes = gan_dissect.layers(generator)
    # Names decide what rows are called; other names are another run.
    names = hashlib.sha256(json.dumps(generator.label_names).encode()).hexdigest()
    return {
        "name": generator.name,
        "fingerprint": models.fingerprint(generator),
        "hub": hub.source(weights),
        "layers": {name: list(shape) for name, shape in shapes.items()},
        "label_names_sha256": names if generator.label_names else None,
        "concepts": list(found.names) if found else None,
        "concepts_fingerprint": models.fingerprint(found) if found else None,
    }


def describe_masks(names: tuple[str, ...], masks: np.ndarray) -> Record:
    """Returns the same of a folder of masks."""
    # By content: a mask that was painted over makes it another run.
    digest = hashlib.sha256(np.packbits(masks).tobytes()).hexdigest()
    return {"concepts": list(names), "concepts_fingerprint": digest}


def list_layers(generator: gan_dissect.Generator) -> int:
    """Prints the layers of a generator with their shapes, one a line; returns the exit code."""
    for name, shape in gan_dissect.layers(generator).items():
        print(f"{name}  [B, {', '.join(map(str, shape))}]")
    return 0


def no_such_layer(generator: gan_dissect.Generator, name: str) -> ValueError:
    """Returns the error for a layer that the generator does not have, with the nearest one."""
    known = gan_dissect.layers(generator)
    near = messages.nearest(name, known, cutoff=0.0)
    return ValueError(
        f"--layer={name}: {generator.name} has no such layer; its layers: "
        f"{messages.listed(known, 90)}; the nearest is {near!r}, --list_layers shows all"
    )


def vector_size(generator: gan_dissect.Generator) -> int:
    """Returns D of a generator whose latents are vectors `[D]`, or one a layer as of W+,
    `[layers, D]`.

    Raises:
      ValueError: if they are not.
    """
    one = jax.eval_shape(generator.draw, jax.random.key(0))
    if not isinstance(one, jax.ShapeDtypeStruct) or len(one.shape) not in (1, 2):
        raise ValueError(
            f"a walk needs latents that are one vector; those of generator {generator.name} are "
            f"{jax.tree.map(lambda s: list(s.shape), one)}. Of nets with classes or layers, "
            '--generator_options=\'{"label": 0}\' or \'{"space": "w"}\' makes it one'
        )
    return int(one.shape[-1])
