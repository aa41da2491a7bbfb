"""What a notebook's cell shows of a model or a result."""

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


def records():
    """The public records of both libraries that hold arrays, whatever module they are in."""
    found = {}
    for package in (perturb, gan_dissect):
        for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if "internals" in info.name or any(p.startswith("_") for p in info.name.split(".")):
                continue
            module = importlib.import_module(info.name)
            for name in getattr(module, "__all__", ()):
                value = getattr(module, name)
                if inspect.isclass(value) and hasattr(value, "_fields"):
                    kinds = " ".join(map(str, value.__annotations__.values()))
                    if "ndarray" in kinds and "Callable" not in kinds:
                        found[f"{value.__module__}.{name}"] = value
    return found


@pytest.mark.parametrize("name", records())
def test_a_result_is_at_most_twenty_lines(name):
    kind = records()[name]
    shown = repr(kind(*[np.zeros((40, 50, 60))] * len(kind._fields)))
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
