"""The tab of units: what each unit of a classifier answers to, and what classes lose without some
of them.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import jax
import numpy as np

import perturb
from launch.report import pictures
from launch.studio.masks import spread
from launch.studio.work import Report
from launch.studio.world import World, chance
from perturb import internals
from perturb.evidence import fills
from perturb.types import Options, PyTree, Record

__all__ = ["Units"]

PICTURES, SHOWN = 160, 4  # that units are shown on; on a card
CARDS = 96  # at most
SIDE = 96  # px, of a picture on a card
OUTLINED = 0.5  # of a unit's highest activation in a picture
BATCH = 32


class Units:
    """Answers the questions of the tab; what a layer's units do is measured once and kept."""

    def __init__(self, world: World):
        self._world = world
        self._lock = threading.Lock()
        self._cards: dict[tuple[str, str], Record] = {}
        self._material: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def layers(self, model: str) -> dict[str, int]:
        """Returns the layers with a map a unit, and how many units each has, those after a
        rectification first.
        """
        net = self._world.model(model)
        image = self._world.pixels(next(iter(self._world.gallery)), model)
        given = jax.ShapeDtypeStruct((2, *image.shape), np.float32)
        found = {
            name: shape.shape[net.channel_axis(shape)]
            for name, shape in perturb.taps.names(net, given).items()
            if len(shape.shape) == 4
        }
        rectified = {n: u for n, u in found.items() if "relu" in n.lower()}
        return rectified or found

    def cards(self, asked: Options, report: Report) -> Record:
        """Cards of the units of a layer: `{model, layer}`, those that the answers rest on most
        first.
        """
        model, layer, net = self._asked(asked)
        with self._lock:
            if (model, layer) in self._cards:
                return self._cards[model, layer]
        report(0, 4, "looking at pictures")
        images, targets = self._pictures(model)
        examples = internals.top_examples(net, images, layer=layer, k=SHOWN, batch_size=BATCH)
        report(1, 4, "switching off every unit")
        answers = internals.ablate(net, images, targets, layer=layer, batch_size=BATCH)
        report(3, 4, "drawing cards")
        cost = answers.effect("log_probability")  # [units, N]
        classes = sorted(set(targets.tolist()))
        # By class: a unit that one class rests on shows little in the mean over all.
        per_class = np.stack([cost[:, targets == c].mean(1) for c in classes], 1)
        order = np.argsort(-np.abs(per_class).max(1), kind="stable")[:CARDS]
        # One picture's activation shows all its units.
        wanted = sorted({int(i) for u in order for i in examples.indices[u] if i >= 0})
        maps: dict[int, np.ndarray] = {}
        for at in range(0, len(wanted), BATCH):
            part = wanted[at : at + BATCH]
            # Filled up, for another size would compile another program.
            full = part + part[-1:] * (BATCH - len(part))
            values = internals.activations(net, images[np.array(full)], layer)
            maps |= {i: values[n] for n, i in enumerate(part)}
        found = []
        for n, unit in enumerate(order.tolist()):
            report(3 + n / len(order), 4, "drawing cards")
            tiles = []
            for i in examples.indices[unit]:
                if i < 0:
                    continue
                values = maps[int(i)][..., unit]
                region = values > OUTLINED * max(float(values.max()), 1e-9)
                mask = spread(region.astype(np.float32), images.shape[1:3])
                tiles.append(pictures.overlay(pictures.levels(images[int(i)]), mask, SIDE))
            top = np.argsort(-np.abs(per_class[unit]), kind="stable")[:2]
            found.append(
                {
                    "unit": unit,
                    "sheet": pictures.data_uri(pictures.beside(tiles)),
                    "loses": [
                        {"name": self._name(net, classes[c]), "by": per_class[unit, c]} for c in top
                    ],
                }
            )
        made = {"model": model, "layer": layer, "cards": found, "pictures": len(images)}
        with self._lock:
            self._cards[model, layer] = made
        return made

    def ablate(self, asked: Options) -> Record:
        """What a picture, and every class, lose without units: `{model, layer, units, picture}`."""
        model, layer, net = self._asked(asked)
        units, most = asked.get("units"), self.layers(model)[layer]
        if not isinstance(units, list) or not all(type(u) is int and 0 <= u < most for u in units):
            raise ValueError(f"units of {layer} must be numbers from 0 to {most - 1}")
        image = self._world.pixels(asked.get("picture"), model)
        off = np.zeros(most, np.float32)
        off[units] = 1
        batch = np.stack([image, image])
        whole = chance(net, fills.outputs_of(net, batch))[0]
        without = chance(net, np.asarray(_without(net, batch, off, layer=layer)))[0]
        images, targets = self._pictures(model)
        keep = np.zeros((1, most), bool)
        keep[0, units] = True
        answers = internals.ablate(net, images, targets, layer=layer, sets=keep, batch_size=BATCH)
        right = answers.correct
        classes = sorted(set(targets.tolist()))
        order = np.argsort(-np.maximum(whole, without), kind="stable")[:10]
        return {
            "classes": [
                {"name": self._name(net, int(t)), "before": whole[t], "after": without[t]}
                for t in sorted(order.tolist())
            ],
            "accuracy": [
                {
                    "name": self._name(net, c),
                    "before": right[0, targets == c].mean(),
                    "after": right[1, targets == c].mean(),
                }
                for c in classes
            ],
            "pictures": len(images),
        }

    def _asked(self, asked: Options) -> tuple[str, str, perturb.Model]:
        model, layer = str(asked.get("model")), asked.get("layer")
        net = self._world.model(model)
        if net.output != "logits":
            raise ValueError(
                f"units are switched in networks that give logits, {model} gives {net.output}"
            )
        known = self.layers(model)
        if not isinstance(layer, str) or layer not in known:
            raise ValueError(f"layer must be one of {', '.join(known)}"[:250])
        return model, layer, net

    def _pictures(self, model: str) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            if model in self._material:
                return self._material[model]
        images, known = self._world.material(model, PICTURES)
        if known is None:  # then what counts is whether the answer stays
            net = self._world.model(model)
            known = np.asarray(fills.outputs_of(net, images)).argmax(-1).astype(np.int64)
        with self._lock:
            self._material[model] = images, known
        return images, known

    @staticmethod
    def _name(net: perturb.Model, target: int) -> str:
        return net.class_names[target] if net.class_names else str(target)


@functools.partial(jax.jit, static_argnames="layer")
def _without(model: Any, images: PyTree, off: jax.Array, *, layer: str) -> PyTree:
    def change(x: jax.Array) -> jax.Array:
        keep = 1 - off
        return x * (keep[:, None, None] if model.channels_first else keep)

    return perturb.taps.edit(model, {layer: change})(images)
