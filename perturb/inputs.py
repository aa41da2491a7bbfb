"""What a call is given, checked once for masks, attributions, metrics and attacks alike.

Values are checked where there are any: arrays under `jit`, `vmap` or `grad` have shapes only, and
pass with those. Every refusal names the argument, shows what came, and says what to write instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from perturb import scores
from perturb.messages import did_you_mean, listed, short
from perturb.types import Array, ArrayLike, PyTree

if TYPE_CHECKING:
    from perturb.model import Model

__all__ = [
    "check_targets",
    "pictures",
    "returned",
]

# What rounding may add to [0, 1].
_SLACK = 1e-3


def random_key(key: jax.Array | None) -> jax.Array:
    """Returns the key that was given, or `jax.random.key(0)` for None.

    >>> random_key(3)
    Traceback (most recent call last):
    ValueError: key must be a random key such as jax.random.key(3), got 3
    """
    if key is None:
        return jax.random.key(0)
    scalar = np.ndim(key) == 0
    if not hasattr(key, "dtype") or (scalar and not jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        seed = key if isinstance(key, int) else 0
        raise ValueError(
            f"key must be a random key such as jax.random.key({seed}), got {short(key, 60)}"
        )
    return key


def keys_by_place(key: jax.Array | None, number: int) -> jax.Array:
    """Returns `[number]` keys, the key folded with 0, 1, ...; None is `jax.random.key(0)`.

    >>> keys_by_place(None, 3).shape
    (3,)
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(random_key(key), jnp.arange(number))


def _is_traced(value: object) -> bool:
    return isinstance(value, jax.core.Tracer)


def pictures(model: Model, images: PyTree) -> PyTree:
    """Returns images `[B, *size, C]` float32.

    Raises:
      ValueError: if they are no batch, or not finite numbers in [0, 1].
    """
    if _is_traced(images):
        _check_shape(model, images)
        return images.astype(jnp.float32)
    # Pictures of Pillow, recognised without importing it.
    if hasattr(images, "getbands") or (
        isinstance(images, list | tuple) and len(images) and hasattr(images[0], "getbands")
    ):
        raise ValueError(
            "images must be an array [B, H, W, C] in [0, 1], got PIL images: resize them alike and "
            "write np.stack([np.asarray(i.convert('RGB'), np.float32) / 255 for i in images])"
        )
    try:
        found = np.asarray(images)
    except ValueError as error:
        raise ValueError(
            "images must be one array [B, H, W, C], got images of different sizes: resize them "
            "alike"
        ) from error
    # Integers are mostly 0 to 255. To scale them silently would be a guess: a drawing of 0
    # and 1 holds integers too.
    if found.dtype.kind in "iu":
        raise ValueError(f"images must be floats in [0, 1], got {found.dtype}; divide by 255")
    # NumPy counts bfloat16 among the types without a kind of their own.
    if found.dtype.kind not in "fb" and found.dtype != jnp.bfloat16:
        raise ValueError(f"images must be an array of floats in [0, 1], got {short(images)}")
    _check_shape(model, found)
    found = found.astype(np.float32)
    if not np.isfinite(found).all():
        bad = np.flatnonzero(~np.isfinite(found).reshape(len(found), -1).all(1))
        raise ValueError(f"images must be finite, got NaN or infinite pixels in image {bad[0]}")
    low, high = float(found.min()), float(found.max())
    if low < -_SLACK or high > 1 + _SLACK:
        # Subtracting a mean makes negative values; without any, large ones are 8-bit pixels.
        cure = "undo the normalisation, the model applies its own"
        if low >= 0 and high > 2:
            cure = "divide by 255"
        raise ValueError(f"images must lie in [0, 1], got values from {low:g} to {high:g}; {cure}")
    return found


def _check_shape(model: Model, images: Array) -> None:
    shape, channels = tuple(images.shape), model.channels
    size = model.geometry.size if model.geometry else None
    # [H, W, C] could also be a batch of signals: the size that the model is made for decides.
    if len(shape) < 3 or (size is not None and shape[:2] == tuple(size) and len(shape) == 3):
        more = ", ..., None" if len(shape) == 2 and channels == 1 else ""
        raise ValueError(
            f"images must be [B, H, W, {channels}] with B at least 1, got shape {shape}; for one "
            f"picture write images[None{more}]"
        )
    if not shape[0]:
        raise ValueError(
            f"images must hold at least one image: [B, H, W, {channels}] with B at least 1, got "
            f"shape {shape}"
        )
    if 0 in shape:
        raise ValueError(f"images must have pixels, got shape {shape}")
    if shape[-1] != channels:
        cure = ""
        if len(shape) == 4 and shape[1] == channels:
            cure = "; channels come last: write images.transpose(0, 2, 3, 1)"
        elif shape[-1] in (1, 3, 4):
            cure = f"; Model(..., channels={shape[-1]}) is for such pictures"
        raise ValueError(
            f"images must have {channels} channels, they must be [B, H, W, {channels}], got shape "
            f"{shape}{cure}"
        )


def describe(value: object) -> str:
    """Returns what a value is made of, in a line: `a dict with logits [2, 3], hidden [2, 8]`."""
    if hasattr(value, "shape"):
        return str(list(value.shape))
    parts = _parts(value)
    if parts is None:
        return f"a {type(value).__name__}"
    shown = [f"{name} {_brief(part)}" for name, part in list(parts.items())[:6]]
    more = f", and {len(parts) - 6} more" if len(parts) > 6 else ""
    return f"a {type(value).__name__} with {', '.join(shown)}{more}"


def _brief(value: object) -> str:
    return str(list(value.shape)) if hasattr(value, "shape") else f"({type(value).__name__})"


def _parts(value: object) -> dict[PyTree, PyTree] | None:
    """What may be selected of a value, by key, attribute or index."""
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    try:
        # Optional fields of a record are often None.
        return {k: v for k, v in vars(value).items() if v is not None and not k.startswith("_")}
    except TypeError:
        return None


def returned(model: Model, outputs: PyTree) -> None:
    """Refuses outputs that are not what `model.output` says.

    Args:
      outputs: of a batch, or their shapes, after `model.select`.
    Raises:
      ValueError: listing what came back and the `select=` to write.
    """
    kind = model.output
    if kind == "any":
        return
    if kind == "detection":
        shapes: list[PyTree] = (
            [getattr(p, "shape", ()) for p in outputs] if _is_pair(outputs) else []
        )
        if len(shapes) == 2 and all(len(s) == 3 for s in shapes) and shapes[0][-1] == 4:
            return
        raise ValueError(
            f"model {model.name}: output='detection' wants (boxes [B, N, 4], scores [B, N, "
            f"classes]), got {describe(outputs)}: say select=FUNCTION that gives the two"
        )
    if not hasattr(outputs, "shape"):
        raise ValueError(
            f"model {model.name} returns {describe(outputs)}, where output={kind!r} wants one "
            f"array: say select={_suggestion(outputs)}"
        )
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        # Labels, answers and spectra: every gradient would be zero, or none, without a word.
        raise ValueError(
            f"model {model.name} returns {outputs.dtype}, where output={kind!r} wants floats: "
            "return the scores that it decides by; output='any' lets RISE and occlusion see "
            "decisions"
        )
    shape: tuple[int, ...] = tuple(outputs.shape)
    number = len(shape)
    good = number >= 3 if kind == "segmentation" else number >= 1
    if kind in ("logits", "probabilities", "multilabel", "regression"):
        # [B] is one number an image.
        good = number in (1, 2)
    if kind == "binary":
        good = shape[1:] in ((), (1,))
    if not good:
        wanted = {
            "segmentation": "[B, H, W, classes]",
            "binary": "[B] or [B, 1]",
            "regression": "[B] or [B, D]",
            "multilabel": "[B, labels]",
        }.get(kind, "[B, classes]")
        cure = "say select=FUNCTION that gives it, or another output="
        if kind == "binary" and number == 2:
            cure = "say output='logits' for a score a class"
        raise ValueError(
            f"model {model.name}: output={kind!r} wants {wanted}, it returns {list(shape)}: {cure}"
        )
    names = len(model.class_names)
    counted = kind in ("logits", "probabilities", "multilabel", "segmentation") and number > 1
    # One logit has one name, or a no and a yes.
    if names and counted and names not in ((1, 2) if shape[-1] == 1 else (shape[-1],)):
        raise ValueError(
            f"model {model.name} has {shape[-1]} classes but {names} class names: give "
            "class_names one name a class, in the order of the outputs, or none"
        )


def _is_pair(outputs: PyTree) -> bool:
    return isinstance(outputs, tuple | list) and len(outputs) == 2


def _suggestion(outputs: PyTree) -> str:
    parts = _parts(outputs) or {}
    likely = [n for n in ("logits", "out", "prediction", "output", "scores", 0) if n in parts]
    arrays = [n for n, part in parts.items() if hasattr(part, "shape")]
    found = [*likely, *arrays]
    return repr(found[0]) if found else "FUNCTION, which picks it"


def check_targets(
    model: Model, targets: PyTree, outputs: PyTree, number: int, *, images: ArrayLike = ()
) -> PyTree:
    """Returns one target an image: `[B]` int32, or a pytree of `[B, ...]` where outputs have such
    targets.

    Args:
      targets: class numbers, class names, one of either for all images; for embeddings also vectors
        `[B, D]`, for segmentation `(classes [B], regions [B, H, W])`, for detection
        `(classes [B], boxes [B, 4])`.
      outputs: of some images, to count the classes.
      number: of images.
      images: for the hint at a batch axis that is missing.
    Raises:
      ValueError: naming the target that does not fit.
    """
    # Outputs may be shapes alone, where the images are traced.
    row = jax.tree.map(lambda y: jax.ShapeDtypeStruct(y.shape[1:], y.dtype), outputs)
    if model.output == "any" and not hasattr(row, "shape"):
        raise ValueError(
            f"model {model.name} returns {describe(outputs)}, where a target wants one array: "
            f"say select={_suggestion(outputs)} or what the output is, output='...'"
        )
    classes = scores.number_of_targets(model.output, row)
    if isinstance(targets, tuple) and model.output in ("segmentation", "detection"):
        if len(targets) != 2:
            raise ValueError(f"targets must be (classes, places), got a tuple of {len(targets)}")
        wanted = _indices(model, targets[0], classes, number, images)
        # A region or a box an image.
        places = targets[1] if _is_traced(targets[1]) else np.asarray(targets[1], np.float32)
        shape = tuple(row.shape[:-1]) if model.output == "segmentation" else (4,)
        if tuple(places.shape) != (number, *shape):
            raise ValueError(
                f"targets must be (classes [B], places {[number, *shape]}), got places of shape "
                f"{tuple(places.shape)}"
            )
        return wanted, places
    if (
        model.output == "embedding"
        and np.ndim(targets) == 2
        and np.asarray(targets).dtype.kind == "f"
    ):
        vectors = np.asarray(targets, np.float32)
        if vectors.shape != (number, classes) or not np.isfinite(vectors).all():
            raise ValueError(
                f"targets must be finite vectors [{number}, {classes}] like the model's "
                f"embeddings, got shape {vectors.shape}"
            )
        return vectors
    return _indices(model, targets, classes, number, images)


def _indices(model: Model, targets: PyTree, classes: int, number: int, images: ArrayLike) -> PyTree:
    if _is_traced(targets):
        return targets
    if targets is None:
        raise ValueError(
            "targets must say what to explain, one class an image, got None; for the top class "
            "write np.asarray(model(images)).argmax(-1)"
        )
    try:
        found = np.asarray(targets)
    except ValueError as error:
        raise ValueError(f"targets must be [B] integers, got {short(targets)}") from error
    # A list of strings is an array of text (U) or, from pandas, of objects (O).
    if found.dtype.kind in "UO" and found.size and all(isinstance(t, str) for t in found.flat):
        found = np.array([named(model, str(t)) for t in found.flat]).reshape(found.shape)
    # One class for all images.
    if found.ndim == 0 and found.dtype.kind in "iu":
        found = np.repeat(found, number)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValueError(f"targets must be [B] integers, one an image, got {short(targets)}")
    if len(found) != number:
        cure = "; for a single picture write images[None]" if np.ndim(images) == 3 else ""
        raise ValueError(
            f"targets must have one row an image: {number} images, but {len(found)} targets{cure}"
        )
    if number and (found.min() < 0 or found.max() >= classes):
        bad = found[(found < 0) | (found >= classes)][0]
        cure = ""
        # Target 1 of a single logit is mostly meant as the yes of a yes-or-no model.
        if classes == 1 and bad == 1 and model.output == "logits":
            cure = "; output='binary' reads it as 1 yes and 0 no"
        raise ValueError(
            f"targets must be in 0 to {classes - 1}, and target {bad} is out of range: model "
            f"{model.name} has {_counted(model, classes)}{cure}"
        )
    return found.astype(np.int32)


def _counted(model: Model, number: int) -> str:
    kind = {"multilabel": "label", "regression": "number", "embedding": "number", "any": "number"}
    one = kind.get(model.output, "class")
    return f"{number} {one}{'' if number == 1 else 'es' if one == 'class' else 's'}"


def named(model: Model, name: str) -> int:
    """Returns the class of that name.

    Raises:
      ValueError: if the model has no such name, or none at all.
    """
    if not model.class_names:
        raise ValueError(
            f"target {short(name, 40)} is a name, but model {model.name} has no class_names"
        )
    if name in model.class_names:
        return model.class_names.index(name)
    wanted = name.strip().casefold()
    folded = [n.casefold() for n in model.class_names]
    # Then any one of a class's synonyms, "tench, Tinca tinca", where only one class has it:
    # ImageNet has two cranes, a bird and a machine.
    for spelt in ([[n] for n in folded], [n.split(", ") for n in folded]):
        found = [i for i, names in enumerate(spelt) if wanted in names]
        if len(found) == 1:
            return found[0]
    raise ValueError(
        f"target {short(name, 40)} is none of the {len(folded)} class names of model {model.name}"
        f"{did_you_mean(name, model.class_names)}; known: {listed(model.class_names, 80)}"
    )
