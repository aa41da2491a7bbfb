"""Walks through latent space: along a direction, between latents, and until a predictor agrees.

>>> spherical(np.array([1.0, 0.0]), np.array([0.0, 2.0]), 3).round(3).tolist()
[[1.0, 0.0], [1.061, 1.061], [0.0, 2.0]]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gan_dissect.directions import Direction
from gan_dissect.generator import Generator
from perturb import Model, arrays, display, progress
from perturb.types import Array, ArrayLike, PyTree
from perturb.units.concepts import Concepts

__all__ = [
    "Calibration",
    "Path",
    "Walk",
    "calibrate",
    "even_speed",
    "linear",
    "looped",
    "random_walk",
    "spherical",
    "through",
    "unit_normal",
    "walk",
]


class Walk(NamedTuple):
    """Frames of a walk.

    Attributes:
      positions: `[frames]`, along the direction.
      latents: `[frames, D]`.
      outputs: what the generator draws, each of leading size frames.
    """

    positions: np.ndarray
    latents: np.ndarray
    outputs: dict[str, jax.Array]

    def __repr__(self) -> str:
        return display.summary(self)

    def _repr_html_(self) -> str:
        from perturb import drawing

        frames = drawing.levels(np.asarray(self.outputs["image"]))
        return drawing.tiles(list(frames), [f"{p:.3g}" for p in self.positions])


class Path(NamedTuple):
    """Frames at even steps of what is seen.

    Attributes:
      latents: `[frames, D]`.
      positions: `[frames]`, where each lies on the path that was given, from 0 to 1.
      steps: `[frames - 1]`, the distance of each frame's features from the one before.
      outputs: what the generator draws, each of leading size frames.
    """

    latents: np.ndarray
    positions: np.ndarray
    steps: np.ndarray
    outputs: dict[str, jax.Array]

    def __repr__(self) -> str:
        return display.summary(self)


class Calibration(NamedTuple):
    """How far each of B latents has to go.

    Attributes:
      reached: `[B]`, whether the target is crossed within the limit.
      position: `[B]`, where; NaN if not reached.
      score: `[B]`, the predictor's score there; the highest on the way if not reached.
      start: `[B]`, the score before.
      latents: `[B, D]`, there; where not reached, those of the highest score.
    """

    reached: np.ndarray
    position: np.ndarray
    score: np.ndarray
    start: np.ndarray
    latents: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def walk(
    generator: Generator,
    latent: PyTree,
    direction: Direction | ArrayLike,
    *,
    steps: int | Sequence[float] = 9,
    start: float = -3.0,
    stop: float = 3.0,
    mode: str = "relative",
    layers: Sequence[int] | None = None,
) -> Walk:
    """Draws the latents along a direction.

    Args:
      generator: of latents `[D]`, or `[layers, D]` as of W+.
      latent: `[D]` or `[layers, D]`, where the walk passes.
      direction: a `Direction` of one attribute, or `[D]`, taken at length 1 (in every layer); or
        `[layers, D]`, each row at length 1.
      steps: frames, at equal distances from `start` to `stop`; or the positions themselves.
      start: position of the first frame, a distance in units of the latents.
      stop: position of the last frame, likewise a distance.
      mode: "relative": a position is the distance from the latent. "absolute": from the boundary,
        its intercept included, so that frame 0 lies on it. (InterFaceGAN does the latter for z and
        the former for w+, and measures from the origin.) Latents of layers walk relatively.
      layers: numbers of the layers that are moved, of latents `[layers, D]`; None is all.
    Raises:
      ValueError: if shapes do not fit, the direction is 0, or there is no such layer.
    """
    z = np.asarray(latent, np.float32)
    normal, intercept = _normal(direction, z.shape, layers)
    if mode not in ("relative", "absolute") or (z.ndim == 2 and mode == "absolute"):
        kinds = "'relative' or 'absolute'" if z.ndim == 1 else "'relative' for latents of layers"
        raise ValueError(f"mode must be {kinds}, got {mode!r}")
    if isinstance(steps, int):
        if steps < 2:
            raise ValueError(f"steps must be at least 2 frames, got {steps}")
        positions = np.linspace(start, stop, steps)
    else:
        positions = np.asarray(steps, np.float64)
        if positions.ndim != 1 or len(positions) < 2:
            raise ValueError(f"steps must be at least 2 positions, got {positions.tolist()}")
    moved = positions - (normal @ z + intercept if mode == "absolute" else 0.0)
    # Positions are counted in float64: what is rounded is each latent, not the sum of the steps.
    latents = (z[None] + np.multiply.outer(moved, normal)).astype(np.float32)
    return Walk(positions, latents, _draw(generator, jnp.asarray(latents)))


def linear(a: ArrayLike, b: ArrayLike, steps: int) -> np.ndarray:
    """Returns `steps` latents `[steps, D]` on the straight line from `a` to `b`.

    Args:
      a: `[D]`, the first latent.
      b: `[D]`, the last latent.
      steps: number of latents, the ends among them.
    """
    return _line(a, b, _shares(a, b, steps))


def spherical(a: Array, b: Array, steps: int) -> np.ndarray:
    """Returns `steps` latents from `a` to `b` at even angles; their lengths change evenly.

    Normal latents of many dimensions all have about one length, which the straight line leaves. For
    latents in one line, which span no plane, the walk is straight.

    Args:
      a: `[D]`, the first latent.
      b: `[D]`, the last latent.
      steps: number of latents, the ends among them.
    """
    return _arc(a, b, _shares(a, b, steps))


def looped(latents: PyTree, steps: int, *, between: str = "spherical") -> np.ndarray:
    """Returns `[N * steps, D]`: through N latents `[N, D]` and back to the first, which is not
    repeated.

    Played in a loop, the frames have no seam.

    Args:
      latents: `[N, D]`, at least 2.
      steps: number of frames from each latent to the next.
      between: "spherical" or "linear".

    >>> looped([[0.0], [1.0], [4.0]], 2, between="linear").ravel().tolist()
    [0.0, 0.5, 1.0, 2.5, 4.0, 2.0]
    """
    xp, z = arrays.namespace(latents), arrays.as_float(latents)
    if z.ndim != 2 or len(z) < 2:
        raise ValueError(f"latents must be [N, D] with N at least 2, got shape {z.shape}")
    if between not in ("spherical", "linear"):
        raise ValueError(f"between must be 'spherical' or 'linear', got {between!r}")
    way = spherical if between == "spherical" else linear
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    ends = xp.roll(z, -1, 0)
    # The end of each stretch is the start of the next, and is left to it.
    found: np.ndarray = xp.concatenate(
        [way(a, b, steps + 1)[:-1] for a, b in zip(z, ends, strict=True)]
    )
    return found


def through(
    generator: Generator, latents: PyTree, *, frames: int, between: str = "spherical"
) -> Walk:
    """Draws a way through several latents, from the first to the last.

    Positions count the latents from 0: 1.5 lies halfway from the second to the third.

    Args:
      generator: of latents `[D]`, or `[layers, D]` as of W+.
      latents: `[P, D]` or `[P, layers, D]`, at least 2.
      frames: of the whole way, the ends among them, at even steps; at least P.
      between: "spherical", for latents of a normal distribution, or "linear", for styles.
    Raises:
      ValueError: if shapes or options do not fit.
    """
    points = np.asarray(latents, np.float64)
    drawn = jax.eval_shape(generator.draw, jax.random.key(0))
    if not isinstance(drawn, jax.ShapeDtypeStruct):
        raise ValueError(
            f"latents of generator {generator.name} must be one array, got {type(drawn).__name__}"
        )
    shape = drawn.shape
    if points.shape[1:] != shape or len(points) < 2:
        sizes = ", ".join(map(str, shape))
        raise ValueError(
            f"latents must be [P, {sizes}] with P at least 2, got shape {list(points.shape)}"
        )
    if not np.isfinite(points).all():
        raise ValueError("latents must be finite, got NaN or infinite values")
    if between not in ("spherical", "linear"):
        raise ValueError(f"between must be 'spherical' or 'linear', got {between!r}")
    if frames < len(points):
        raise ValueError(f"frames must be at least {len(points)}, one a latent, got {frames}")
    positions = np.linspace(0, len(points) - 1, frames)
    rows = points.reshape(len(points), -1, points.shape[-1])
    way = _arc if between == "spherical" else _line
    found = np.empty((frames, *rows.shape[1:]))
    for i, position in enumerate(positions):
        # The last frame is the end of the last stretch, not the start of one more.
        at = min(int(position), len(points) - 2)
        ends = zip(rows[at], rows[at + 1], strict=True)
        share = np.array([position - at])
        # The rows of W+ each turn by themselves.
        found[i] = np.concatenate([way(a, b, share) for a, b in ends])
    passed = found.reshape(frames, *shape).astype(np.float32)
    return Walk(positions, passed, _draw(generator, jnp.asarray(passed)))


def even_speed(
    generator: Generator,
    path: tuple[object, ...],
    *,
    frames: int,
    features: Model | None = None,
    fine: int = 8,
) -> Path:
    """Returns frames along a path between which what is seen changes by equal amounts.

    Args:
      generator: of latents `[D]`.
      path: `[P, D]`, latents from end to end, joined by straight lines.
      frames: how many, the ends among them.
      features: of the images, whose Euclidean distance is what is seen; None takes the pixels.
      fine: number of points measured between two frames.
    Raises:
      ValueError: if shapes do not fit, or nothing changes along the path.
    """
    z = np.asarray(path, np.float64)
    if z.ndim != 2 or len(z) < 2:
        raise ValueError(f"path must be [P, D] with P at least 2, got shape {z.shape}")
    if frames < 2 or fine < 1:
        raise ValueError(f"frames must be at least 2 and fine 1, got {frames}, {fine}")
    whole = np.linspace(0, 1, len(z))

    def at(t: np.ndarray) -> np.ndarray:
        columns = [np.interp(t, whole, column) for column in z.T]
        return np.stack(columns, 1).astype(np.float32)

    def lengths(t: np.ndarray) -> np.ndarray:
        seen = np.asarray(_seen(generator, features, jnp.asarray(at(t))), np.float64)
        seen = seen.reshape(len(seen), -1)
        found: np.ndarray = np.linalg.norm(np.diff(seen, axis=0), axis=1)
        return found

    # Lengths are measured on a finer grid than the frames and summed up. Frames lie where that sum
    # passes equal shares; what unevenness is left is reported in `steps`.
    places = np.linspace(0, 1, (frames - 1) * fine + 1)
    way = np.concatenate([[0], np.cumsum(lengths(places))])
    if not way[-1] > 0:
        raise ValueError("path must change what is drawn, got one along which nothing does")
    positions = np.interp(np.linspace(0, way[-1], frames), way, places)
    latents = at(positions)
    return Path(latents, positions, lengths(positions), _draw(generator, jnp.asarray(latents)))


def random_walk(
    key: jax.Array,
    latent: PyTree,
    direction: Direction | ArrayLike,
    *,
    steps: int,
    stride: float = 0.3,
    along: float = 0.2,
    pull: float = 0.05,
) -> np.ndarray:
    """Returns latents `[steps, D]` that wander, while an attribute rises evenly.

    Each step goes `along` the direction, and at random in all others. Across the direction, a share
    `pull` of the way back to the start keeps the wandering from leaving the prior.

    Args:
      key: random key; consumed.
      latent: `[D]`, the first frame.
      direction: a `Direction` of one attribute, or `[D]`, taken at length 1.
      steps: number of frames.
      stride: length of a step across the direction, on average.
      along: length of a step along it; negative goes the other way.
      pull: in [0, 1].
    Raises:
      ValueError: if shapes or options do not fit.
    """
    z = np.asarray(latent, np.float64)
    normal, _ = unit_normal(direction, z.shape)
    if steps < 2 or not 0 <= pull <= 1:
        raise ValueError(f"steps must be at least 2 and pull in [0, 1], got {steps}, {pull}")
    moves = np.asarray(jax.random.normal(key, (steps - 1, len(z))), np.float64)
    # The attribute must rise by `along` alone, so nothing random is left along it.
    moves -= (moves @ normal)[:, None] * normal[None]
    # A normal vector of D - 1 dimensions has length sqrt(D - 1), about.
    moves *= stride / max(np.sqrt(len(z) - 1), 1)
    away = np.zeros((steps, len(z)))
    for t, move in enumerate(moves):
        away[t + 1] = (1 - pull) * away[t] + move
    found: np.ndarray = z[None] + away + along * np.arange(steps)[:, None] * normal[None]
    return found


def calibrate(
    generator: Generator,
    latents: PyTree,
    direction: Direction | ArrayLike,
    scores: Concepts,
    *,
    name: str | None = None,
    target: float = 0.9,
    limit: float = 6.0,
    grid: int = 25,
    halvings: int = 14,
) -> Calibration:
    """Finds how far each latent goes along a direction until the predictor's score crosses
    `target`.

    The way to `limit` is scanned at `grid` places; in the first stretch where the score crosses the
    target, from whichever side, the place is halved down to. A crossing and back between two places
    of the grid is not seen.

    Args:
      generator: of latents `[D]`.
      latents: `[B, D]`.
      direction: a `Direction` of one attribute, or `[D]`, taken at length 1.
      scores: concepts of kind "scores".
      name: of the concept whose score is followed; may be left out if there is one.
      target: the score to reach.
      limit: farthest distance, in units of the latents; negative walks the other way.
      grid: number of points scanned, the start and the limit among them.
      halvings: number of times that the stretch found is halved.
    Raises:
      ValueError: if shapes or options do not fit.
    """
    z = np.asarray(latents, np.float32)
    if z.ndim != 2 or not len(z):
        raise ValueError(f"latents must be [B, D], got shape {z.shape}")
    normal, _ = unit_normal(direction, z.shape[1:])
    if scores.kind != "scores":
        raise ValueError(
            f"scores must be concepts of kind 'scores', got masks ({', '.join(scores.names[:3])})"
        )
    if name is None and len(scores.names) > 1:
        raise ValueError(f"name must be one of {', '.join(scores.names)}, got None")
    if name is not None and name not in scores.names:
        raise ValueError(f"name must be one of {', '.join(scores.names)}, got {name!r}")
    if grid < 2 or halvings < 1 or not limit:
        raise ValueError(
            f"grid must be at least 2, halvings 1 and limit not 0, got {grid}, {halvings}, {limit}"
        )
    column = 0 if name is None else scores.names.index(name)
    # Never a batch of one: XLA compiles that to other arithmetic than every larger batch.
    batch = jnp.asarray(np.concatenate([z, z]) if len(z) == 1 else z)

    def score(positions: np.ndarray) -> np.ndarray:
        # Repeated like the latents where there is only one.
        at = jnp.asarray(np.resize(positions, len(batch)), jnp.float32)
        found = _scores(generator, scores, batch, jnp.asarray(normal, jnp.float32), at)
        return np.asarray(found)[: len(z), column]

    places = np.linspace(0, limit, grid)
    looked = progress.each(places, "places along the direction")
    seen = np.stack([score(np.full(len(z), p)) for p in looked], 1)
    above = seen >= target
    # From either side: a score that starts above the target is followed until it falls below.
    crossed = above[:, 1:] != above[:, :-1]
    first = crossed.argmax(1)
    reached = crossed.any(1) | (seen[:, 0] == target)
    # A start that has the target's score, and nothing crosses: the distance is 0.
    low, high = places[first], places[np.where(crossed.any(1), first + 1, 0)]
    side = above[np.arange(len(z)), first]
    for _ in range(halvings):
        middle = (low + high) / 2
        same = (score(middle) >= target) == side
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    # `high` has been kept on the far side, so the target is crossed there and not just before.
    found = score(high)
    # Where the target is not crossed the latents are those of the best place seen.
    best = seen.argmax(1)
    position = np.where(reached, high, places[best])
    return Calibration(
        reached=reached,
        position=np.where(reached, high, np.nan),
        score=np.where(reached, found, seen.max(1)),
        start=seen[:, 0],
        latents=(z + position[:, None] * normal[None]).astype(np.float32),
    )


@jax.jit
def _draw(generator: Generator, latents: jax.Array) -> dict[str, jax.Array]:
    return generator(latents)


@jax.jit
def _seen(generator: Generator, features: Model | None, latents: jax.Array) -> jax.Array:
    image = generator(latents)["image"]
    return image if features is None else features(image)


@jax.jit
def _scores(
    generator: Generator, scores: Concepts, latents: jax.Array, normal: jax.Array, at: jax.Array
) -> jax.Array:
    return scores(generator(latents + at[:, None] * normal[None]))


def unit_normal(
    direction: Direction | ArrayLike, shape: tuple[int, ...]
) -> tuple[np.ndarray, float]:
    """Returns a direction for latents of `shape` at length 1, and its intercept, 0 if it has none.

    Args:
      direction: a `Direction` of one attribute, or an array of the latents' shape, or `[D]`.
      shape: of one latent, `(D,)` or `(layers, D)`.
    """
    normal, intercept = direction, 0.0
    if isinstance(direction, Direction):
        if np.ndim(direction.normal) != 1:
            raise ValueError(
                f"direction must be of one attribute, got {len(direction.normal)}: take one of "
                "each field"
            )
        normal, intercept = direction.normal, float(direction.intercept)
    n = np.asarray(normal, np.float64)
    if len(shape) != 1 or n.shape != shape:
        raise ValueError(
            f"latent must be [D] and direction of its size, got shapes {list(shape)} and "
            f"{list(n.shape)}"
        )
    length = np.linalg.norm(n)
    if not length or not np.isfinite(length):
        raise ValueError("direction must be finite and not 0, got one that is")
    return n / length, intercept


def _normal(
    direction: ArrayLike, shape: tuple[int, ...], layers: Sequence[int] | None
) -> tuple[np.ndarray, float]:
    """Returns what a latent of `shape` moves by at distance 1, and the intercept."""
    if len(shape) != 2:
        if layers is not None:
            raise ValueError(f"layers must be None for latents {list(shape)}, got {list(layers)}")
        return unit_normal(direction, shape)
    given = direction.normal if isinstance(direction, Direction) else direction
    rows = np.asarray(given, np.float64)
    # One direction for all layers is written out, for each layer's row is scaled by itself.
    rows = rows[None].repeat(shape[0], 0) if rows.ndim == 1 else rows
    if rows.shape != shape:
        raise ValueError(
            f"direction must be {list(shape[1:])} or {list(shape)}, got shape "
            f"{list(np.shape(given))}"
        )
    wrong = [k for k in layers or () if not 0 <= k < shape[0]]
    if wrong:
        raise ValueError(f"layers must be in 0 to {shape[0] - 1}, got {wrong[0]}")
    normal = np.zeros(shape)
    # Each row at length 1 by itself, so that a distance means the same in every layer.
    for k in range(shape[0]) if layers is None else layers:
        normal[k], _ = unit_normal(rows[k], shape[1:])
    return normal, 0.0


def _line(a: ArrayLike, b: ArrayLike, t: np.ndarray) -> np.ndarray:
    """At shares `t` `[N]` of the straight line: `[N, D]`."""
    xp, s = arrays.namespace(a, b), t[:, None]
    found: np.ndarray = (1 - s) * xp.asarray(a) + s * xp.asarray(b)
    return found


def _arc(a: Array, b: Array, t: np.ndarray) -> np.ndarray:
    """At shares `t` `[N]` of the angle: `[N, D]`."""
    xp = arrays.namespace(a, b)
    a, b = arrays.as_float(a, b), arrays.as_float(b, a)
    s = t[:, None]
    squares = (a * a).sum(), (b * b).sum()
    nowhere = (squares[0] == 0) | (squares[1] == 0)
    # What is not chosen below must have a slope all the same: no root of 0, no division by 0.
    lengths = [xp.sqrt(xp.where(nowhere, 1.0, square)) for square in squares]
    u, v = a / lengths[0], b / lengths[1]
    # Rounding may put the cosine of one and the same direction beyond 1.
    near = xp.clip(u @ v, -1, 1)
    angle = xp.arccos(xp.where(abs(near) < 1, near, 0.0))
    straight = nowhere | (abs(near) >= 1) | (xp.sin(angle) < 1e-6)
    sine = xp.where(straight, 1.0, xp.sin(angle))
    around = (xp.sin((1 - s) * angle) * u + xp.sin(s * angle) * v) / sine
    found: np.ndarray = xp.where(
        straight, _line(a, b, t), around * ((1 - s) * lengths[0] + s * lengths[1])
    )
    return found


def _shares(a: PyTree, b: PyTree, steps: int) -> np.ndarray:
    if np.ndim(a) != 1 or np.shape(a) != np.shape(b):
        raise ValueError(f"a and b must be latents [D], got shapes {np.shape(a)} and {np.shape(b)}")
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}")
    return np.linspace(0, 1, steps)
