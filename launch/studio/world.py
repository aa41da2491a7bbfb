"""What a studio has to show: networks, pictures, a generator; and what users drop into it, in
memory only.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import pathlib
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gan_dissect
import perturb
from launch import directions, generators, models
from launch.inputs import decoding, images, listing
from launch.job import store
from perturb.types import PyTree

__all__ = ["Entry", "Missing", "World", "chance", "load"]


SHOWN = 240  # pictures of --images in the gallery
KEPT, KEPT_BYTES = 64, 256 * 2**20  # of what is dropped; the oldest goes first
SIDE = 224  # px, of pictures for a network that takes any size
UNITS_SEED = 4_000  # of the embedded pictures that units are shown on


class Missing(ValueError):
    """A picture that is not there, or not any more."""


class Entry(NamedTuple):
    """A picture of the gallery.

    Attributes:
      id: in addresses.      name: for people.
      target: class that it is known to show, or None.
      pixels: `[H, W, C]`, or None where `path` is read when it is asked for.
    """

    id: str
    name: str
    target: int | None
    pixels: np.ndarray | None = None
    path: Any = None


@dataclasses.dataclass
class World:
    """Networks by name, with what they are called, and all there is to look at.

    Attributes:
      models: by name.
      called: names for people.
      weights: files, for scripts.
      gallery: by id.
      generator: or None.
      concepts: masks of the generator's pictures.
      attributes: scores for its directions, or None.
      decoders: processes that open what is dropped.
    """

    models: dict[str, perturb.Model]
    called: dict[str, str]
    gallery: dict[str, Entry]
    generator: gan_dissect.Generator | None
    concepts: gan_dissect.Concepts | None
    attributes: gan_dissect.Concepts | None
    embedded: bool
    decoders: decoding.Decoders
    weights: dict[str, str | None] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._dropped: collections.OrderedDict[str, bytes] = collections.OrderedDict()
        self._pixels: collections.OrderedDict[tuple[str, str], np.ndarray] = (
            collections.OrderedDict()
        )
        self._lock = threading.Lock()

    def model(self, name: object) -> perturb.Model:
        """Returns a network by its name.

        Raises:
          ValueError: if there is none.
        """
        if not isinstance(name, str) or name not in self.models:
            raise ValueError(f"model must be one of {', '.join(self.models)}, got {name!r:.40}")
        return self.models[name]

    def pixels(self, picture: Any, model: str) -> np.ndarray:
        """Returns a picture `[H, W, C]` as a network takes it.

        Raises:
          Missing: if it is not there, or not any more.
          ValueError: if it cannot be used.
        """
        net, at = self.model(model), (str(picture), model)
        with self._lock:
            if at in self._pixels:
                self._pixels.move_to_end(at)
                return self._pixels[at]
            data = self._dropped.get(str(picture))
        entry = self.gallery.get(str(picture))
        # Drawn pictures go to the network as they are; through an encoder they would lose a little.
        if entry is not None and entry.pixels is not None and _fits(entry.pixels, net):
            return entry.pixels
        try:
            if data is not None:
                found = self.decoders.picture(data, _geometry(net), net.channels).pixels
            elif entry is not None and entry.path is not None:
                found = self.decoders.read(entry.path, _geometry(net), net.channels).pixels
            elif entry is not None and entry.pixels is not None:
                shown = images.encode(entry.pixels).tobytes()
                found = self.decoders.picture(shown, _geometry(net), net.channels).pixels
            else:
                raise Missing("this picture is not here any more: drop it in again")
        except images.BadImage as error:
            raise ValueError(f"this picture cannot be used: {error}") from error
        with self._lock:
            self._pixels[at] = found
            # By bytes and not by number: pictures of one network may be fifty times those
            # of another.
            while sum(p.nbytes for p in self._pixels.values()) > KEPT_BYTES:
                self._pixels.popitem(last=False)
        return found

    def drop(self, data: bytes) -> str:
        """Takes a picture in; returns its id, the hash of its bytes.

        Raises:
          ValueError: if it is not a picture that the launchers read.
        """
        first = next(iter(self.models))
        net = self.models[first]
        try:
            # Decoded at once, in a process of its own: what cannot be used is refused when
            # it is dropped.
            found = self.decoders.picture(data, _geometry(net), net.channels)
        except images.BadImage as error:
            raise ValueError(f"this picture cannot be used: {error}") from error
        with self._lock:
            self._pixels[found.sha256, first] = found.pixels
            # Under its content: the same picture dropped twice is one.
            self._dropped[found.sha256] = data
            while len(self._dropped) > KEPT or sum(map(len, self._dropped.values())) > KEPT_BYTES:
                self._dropped.popitem(last=False)
        return found.sha256

    def material(self, model: str, most: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns pictures `[N, H, W, C]` that units are shown on, and their classes, if all are
        known.
        """
        if self.embedded:
            from launch.demo import world

            batch = world.render_batch(UNITS_SEED, range(most), watermark="random")
            return batch.image, batch.target.astype(np.int64)
        entries = list(self.gallery.values())[:most]
        found, targets = [], []
        for entry in entries:
            try:
                found.append(self.pixels(entry.id, model))
                targets.append(entry.target)
            except ValueError:
                continue
        if not found:
            raise ValueError("none of the pictures of --images can be used")
        # Classes of some pictures only are no use for accuracies.
        known = None if None in targets else np.array(targets, np.int64)
        return np.stack(found), known


def _geometry(model: perturb.Model) -> perturb.Geometry:
    return model.geometry or perturb.squash(SIDE)


def _fits(pixels: np.ndarray, model: perturb.Model) -> bool:
    size = (model.geometry.size if model.geometry else None) or pixels.shape[:2]
    return pixels.shape == (*size, model.channels)


def load(
    *,
    model: str | None = None,
    weights: str | None = None,
    second: str | None = None,
    second_weights: str | None = None,
    class_names: str | None = None,
    listed: str | None = None,
    generator: str | None = None,
    generator_weights: str | None = None,
    generator_options: str | None = None,
    concepts: str | None = None,
) -> World:
    """Returns what the flags ask for; without any of them the embedded world.

    Raises:
      ValueError: naming the flag that cannot be served.
    """
    found: dict[str, perturb.Model] = {}
    called: dict[str, str] = {}
    files: dict[str, str | None] = {}
    if model is None:
        from launch import demo

        # One name for both, so that they share one compiled program.
        for kind, said in (("demo", "honest"), ("demo_cheat", "cheat")):
            found[kind] = dataclasses.replace(demo.load(kind), name="demo")
            called[kind], files[kind] = said, None
    else:
        for name, file in ((model, weights), (second, second_weights)):
            if name is None:
                continue
            # The same net may be shown twice, with two files of weights.
            at = name if name not in found else f"{name} 2"
            found[at] = models.load(name, weights=file, names_file=class_names)
            models.check_settings(found[at])
            called[at], files[at] = at, file
    embedded = model is None and listed is None
    gallery = _embedded() if listed is None else _listed(listed)
    shown = None if generator is None and model is not None else generator or "demo"
    drawn = masks = scores = None
    if shown is not None:
        drawn = generators.load(shown, weights=generator_weights, options=generator_options)
        masks = generators.concepts(concepts, drawn)
        if masks is None or masks.kind != "masks":
            raise ValueError("--concepts: the studio needs masks that it can compute, not a folder")
        scores = directions.scorers(None if shown == "demo" else concepts, drawn)
    made = World(
        found, called, gallery, drawn, masks, scores, embedded, decoding.Decoders(2), files
    )
    for name, net in found.items():
        if net.output not in perturb.rewards.CLASSES:
            raise ValueError(
                f"--model={name}: the studio shows networks that name classes, output "
                f"{net.output!r} does not"
            )
        pixels = made.pixels(next(iter(gallery)), name)
        # Now, and not at the first question of a page that is open already.
        models.check(net, np.stack([pixels, pixels]), None)
    return made


def _embedded() -> dict[str, Entry]:
    from launch.demo import world

    found = {}
    for kind in ("right", None, "wrong"):
        for p in world.pictures(10, watermark=kind):
            stamp = f", stamped as {world.class_names[p.mark]}" if p.mark >= 0 else ""
            found[p.id] = Entry(p.id, p.name + stamp, int(p.target), p.image)
    return found


def _listed(asked: str) -> dict[str, Entry]:
    listed = listing.scan(asked)
    root = store.path(listed.root)
    found: dict[str, Entry] = {}
    for item in listed.items[:SHOWN]:
        target = int(item.target) if item.target is not None and item.target.isdecimal() else None
        name = pathlib.PurePath(item.path).name
        found.setdefault(item.path, Entry(item.path, name, target, None, root / item.path))
    return found


def chance(model: perturb.Model, outputs: PyTree) -> np.ndarray:
    """Returns the probability of every class, `[N, classes]`, of outputs `[N, ...]`."""
    number = perturb.scores.number_of_targets(model.output, outputs[0])
    return np.asarray(_chances(model.output, number, outputs))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _chances(output: str, number: int, outputs: PyTree) -> jax.Array:
    def of(row: PyTree) -> jax.Array:
        one = functools.partial(perturb.scores.probability, output, row)
        return jax.vmap(one)(jnp.arange(number))

    return jax.vmap(of)(outputs)
