"""The metrics by name, as a league table asks for them: one number an image, with its convention.

>>> SUITE["deletion"].higher, SUITE["deletion"].convention
(False, "rise_28, in 28 steps, to the data set's mean colour")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from perturb import messages, metrics, registry
from perturb.types import PyTree

__all__ = ["SUITE", "Entry", "get", "of"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A metric of the suite.

    Attributes:
      call: `(model, images, targets, maps, truth, boxes, keys) -> [B]`; what it does not need it
        ignores.
      higher: whether higher is better.
      about: what is measured, in a line.
      convention: printed with the number.
      passes: forward passes an image.
      needs: "" or "truth" (the object's pixels), "boxes", or "mosaics".
      curve: `(model, images, targets, maps) -> Curve`, where the metric is the area of one.
    """

    call: Callable[..., np.ndarray]
    higher: bool
    about: str
    convention: str = ""
    passes: int = 0
    needs: str = ""
    curve: Callable[..., metrics.Curve] | None = None


def of(where: str, *, higher: bool, about: str, **more: PyTree) -> Entry:
    """Returns the entry of a metric in a file of its own, imported when it is used.

    Args:
      where: `package.module:function`, a function
        `(model, images, targets, maps, truth, boxes, keys) -> [B]`.
      higher, about: see `Entry`.
      more: further fields of `Entry`.
    """
    return Entry(
        # Looked up when it is called: a listed metric costs no import.
        call=lambda *given: registry.resolve(where)(*given),
        higher=higher,
        about=about,
        **more,
    )


def _road(first: bool) -> Callable[..., np.ndarray]:
    def call(
        model: PyTree, x: PyTree, t: Any, maps: PyTree, truth: PyTree, box: PyTree, key: PyTree
    ) -> np.ndarray:
        found = metrics.road(model, x, t, maps, most_relevant_first=first, key=key)
        # The share of right answers, averaged over the shares removed: one number a picture.
        result: np.ndarray = found.right.mean(1)
        return result

    return call


# Of a metric that no other code calls:
# `"name": of("perturb.metrics.name:name", higher=True, about="...")`.
# The functions of a metric are called through a lambda, so that all have one signature, and so that
# what a metric does not need is not asked of it.
SUITE: dict[str, Entry] = {
    "insertion": Entry(
        call=lambda m, x, t, a, g, b, k: metrics.insertion(m, x, t, a).area,
        curve=metrics.insertion,
        higher=True,
        about="mean probability while a blurred picture is filled in, in the map's order",
        convention="rise_28, in 28 steps, from a blur of 5 px",
        passes=29,
    ),
    "deletion": Entry(
        call=lambda m, x, t, a, g, b, k: metrics.deletion(m, x, t, a).area,
        curve=metrics.deletion,
        higher=False,
        about="mean probability while the picture is taken away, in the map's order",
        convention="rise_28, in 28 steps, to the data set's mean colour",
        passes=29,
    ),
    "srg": Entry(
        call=lambda m, x, t, a, g, b, k: metrics.relevance_gain(m, x, t, a).value,
        higher=True,
        about="area between the curves of the probability, least important pixels first and most "
        "important first",
        convention="in 28 steps, mean of the fills mean colour, blur of 5 px and black",
        passes=174,
    ),
    "grid_pointing": Entry(
        # Mosaics are put together from all pictures of a run: who has these measures it,
        # not this call.
        call=lambda *_: np.zeros(0, np.float64),
        higher=True,
        about="share of a map's positive part that lies on its own picture in a mosaic of four",
        convention="2 x 2 at the size of one picture",
        needs="mosaics",
    ),
    "sufficient_area": Entry(
        call=lambda m, x, t, a, g, b, k: metrics.sufficient_area(m, x, t, a),
        higher=False,
        about="smallest share of the picture that keeps the answer",
        convention="90 % of the probability, blur",
        passes=25,
    ),
    "destroying_area": Entry(
        call=lambda m, x, t, a, g, b, k: metrics.destroying_area(m, x, t, a),
        higher=False,
        about="smallest share of the picture that must go to lose the answer",
        convention="10 % of the probability, blur",
        passes=25,
    ),
    "sufficient_area_mean": Entry(
        call=lambda m, x, t, a, g, b, k: metrics.sufficient_area(m, x, t, a, operator="mean"),
        higher=False,
        about="smallest share of the picture that keeps the answer",
        convention="90 % of the probability, mean fill",
        passes=25,
    ),
    "road": Entry(
        call=_road(True),
        higher=False,
        about="right answers while what the map ranks first is painted over",
        convention="most relevant first, 10 to 90 %, noise .01, share still right",
        passes=9,
    ),
    "road_lerf": Entry(
        call=_road(False),
        higher=True,
        about="right answers while what the map ranks last is painted over",
        convention="least relevant first, 10 to 90 %, noise .01, share still right",
        passes=9,
    ),
    "sic": Entry(
        call=lambda m, x, t, a, g, b, k: metrics.information(m, x, t, a, key=k).area,
        higher=True,
        about="the answer's score against the size of the file shown, area under the curve",
        convention="lossless WebP, at least .8 on the whole picture",
        passes=15,
    ),
    "aic": Entry(
        call=lambda m, x, t, a, g, b, k: metrics.information(m, x, t, a, key=k, output="top1").area,
        higher=True,
        about="right answers against the size of the file shown, area under the curve",
        convention="lossless WebP",
        passes=15,
    ),
    "average_drop": Entry(
        call=lambda m, x, t, a, g, b, k: metrics.average_drop(m, x, t, a).drop,
        higher=False,
        about="share of the probability lost when only the map's part is shown",
        convention="picture times scaled map",
        passes=2,
    ),
    "gini": Entry(
        call=lambda m, x, t, a, g, b, k: metrics.gini(a),
        higher=True,
        about="how few pixels hold the map, 0 for all alike",
    ),
    "pointing": Entry(
        call=lambda m, x, t, a, g, b, k: metrics.pointing(a, g),
        higher=True,
        about="share of maps whose highest point lies on the object",
        convention="15 px, strict",
        needs="truth",
    ),
    "energy": Entry(
        call=lambda m, x, t, a, g, b, k: metrics.energy(a, g),
        higher=True,
        about="share of a map's positive part that lies on the object",
        needs="truth",
    ),
    "rank_accuracy": Entry(
        call=lambda m, x, t, a, g, b, k: metrics.rank_accuracy(a, g),
        higher=True,
        about="share of as many pixels as the object has, highest first, that lie on it",
        needs="truth",
    ),
    "boxes": Entry(
        call=lambda m, x, t, a, g, b, k: metrics.box_hits(a, b, rule="mean", alpha=1.0),
        higher=True,
        about="share of maps whose box fits the object's",
        convention="above the mean, IoU .5",
        needs="boxes",
    ),
}


def get(name: str) -> Entry:
    """Returns the metric of that name.

    Raises:
      ValueError: if the name is unknown.
    """
    if name not in SUITE:
        raise messages.one_of("metric", name, SUITE)
    return SUITE[name]
