"""What a notebook's cell shows of a model or a result."""

import dataclasses
import importlib
import inspect
import pkgutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gan_dissect
import perturb
from perturb import display

ARRAYS = ("ndarray", "jax.Array", "Any", "Dissection", "Likeness", "list[Interval]")
# Plumbing that nobody is handed, and layers of linen, which show themselves as linen does.
WITHIN = (
    "perturb.taps",
    "perturb.weights",
    "perturb.embedded.",
    "perturb.nets",
    "gan_dissect.nets",
)


def holds_arrays(kind):
    """Whether a field that is annotated so holds an array, and not a number that may be traced."""
    return any(a in kind for a in ARRAYS) and "float" not in kind and "Callable" not in kind


def records():
    """The public records of both libraries that hold arrays, whatever module they are in."""
    found = {}
    for package in (perturb, gan_dissect):
        for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if info.name.startswith(WITHIN) or any(p.startswith("_") for p in info.name.split(".")):
                continue
            module = importlib.import_module(info.name)
            for name in getattr(module, "__all__", ()):
                value = getattr(module, name)
                if not inspect.isclass(value) or not value.__module__.startswith(package.__name__):
                    continue
                kinds = [str(kind) for kind in inspect.get_annotations(value).values()]
                named = hasattr(value, "_fields") and any(map(holds_arrays, kinds))
                drawn = dataclasses.is_dataclass(value) and any(
                    k in ("jax.Array", "np.ndarray", "Model") for k in kinds
                )
                if named or drawn:
                    found[f"{value.__module__}.{name}"] = value
    return found


@pytest.mark.parametrize("name", records())
def test_a_result_is_at_most_twenty_lines(name):
    kind = records()[name]
    filled = [
        np.zeros((40, 50, 60)) if holds_arrays(str(a)) else 0.5
        for a in kind.__annotations__.values()
    ]
    record = object.__new__(kind) if dataclasses.is_dataclass(kind) else kind(*filled)
    if dataclasses.is_dataclass(kind):
        for field, value in zip(dataclasses.fields(kind), filled, strict=True):
            object.__setattr__(record, field.name, value)
    shown = repr(record)
    assert len(shown.splitlines()) <= 20
    assert len(shown) < 2000


def test_a_model_names_itself_and_not_its_weights():
    model = perturb.Model(lambda w, x: x.mean((1, 2)) @ w, jnp.eye(3), name="colours")
    shown = repr(model)
    assert "colours" in shown
    assert "float32[3, 3]" in shown
    assert len(shown.splitlines()) <= 20


def test_a_generator_too():
    shown = repr(gan_dissect.Generator(lambda w, z: {"image": z}, {"w": jnp.zeros((3000, 3))}))
    assert "9,000 numbers" in shown
    assert len(shown.splitlines()) <= 20


def test_values_inside_a_trace_can_be_shown():
    class Pair(NamedTuple):
        a: jax.Array
        b: float

    shown = []
    jax.jit(lambda x: shown.append(display.summary(Pair(x, 2.0))) or x)(jnp.zeros(()))
    assert shown == ["Pair(\n  a=float32[],\n  b=2.0,\n)"]
