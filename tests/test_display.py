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
    shown = repr(filled(records()[name]))
    assert len(shown.splitlines()) <= 20
    assert len(shown) < 2000


def filled(kind):
    """A record of this kind with an array that no prompt could hold in every field that takes
    one.
    """
    record = object.__new__(kind) if dataclasses.is_dataclass(kind) else None
    values = {
        name: np.zeros((40, 50, 60)) if holds_arrays(str(annotation)) else 0.5
        for name, annotation in inspect.get_annotations(kind).items()
    }
    if record is None:
        return kind(**{name: values[name] for name in kind._fields})
    for field in dataclasses.fields(kind):
        object.__setattr__(record, field.name, values[field.name])
    return record


# Of the names that the packages give, those that are no records of arrays.
BUILT = {
    "perturb.Geometry": lambda: perturb.central(0.875, 224),
    "perturb.Model": lambda: perturb.demo().model,
    "perturb.Smoothness": lambda: perturb.Smoothness(l1=0.01, tv=0.2),
    "gan_dissect.Canvas": lambda: gan_dissect.Canvas(64, 64),
    "gan_dissect.Concepts": lambda: gan_dissect.Concepts(
        lambda v, y: y["image"] > 0.5, tuple(f"concept {i}" for i in range(300))
    ),
    "gan_dissect.Generator": lambda: gan_dissect.Generator(
        lambda w, z: {"image": z @ w}, jnp.zeros((300, 300))
    ),
    "gan_dissect.Mapped": lambda: gan_dissect.Mapped(gan_dissect.Normal((8,)), lambda v, z: z),
    "gan_dissect.Normal": lambda: gan_dissect.Normal((120,)),
    "gan_dissect.Uniform": lambda: gan_dissect.Uniform((120,)),
}


@pytest.mark.parametrize(
    "name", [f"{p.__name__}.{n}" for p in (perturb, gan_dissect) for n in p.__all__]
)
def test_every_public_object_is_at_most_twenty_lines(name):
    package, _, given = name.partition(".")
    value = getattr({"perturb": perturb, "gan_dissect": gan_dissect}[package], given)
    if inspect.isclass(value):
        # A class that is new here needs one of it: in `BUILT`, unless it is a record of arrays.
        value = BUILT[name]() if name in BUILT else filled(value)
    shown = repr(value)
    assert len(shown.splitlines()) <= 20
    assert len(shown) < 2000


def test_pictures_of_the_embedded_world_and_spectra_too():
    from perturb.embedded import world
    from perturb.internals.features import spectra

    made = spectra.Spectrum(np.zeros((3, 224, 113)), np.eye(3), 224)
    for one in (world.render(0, 3), world.render_batch(0, range(3)), made, perturb.demo()):
        assert len(repr(one).splitlines()) <= 20
        assert len(repr(one)) < 2000


def test_maps_features_and_walks_draw_themselves_in_a_cell():
    from gan_dissect.walks import Walk
    from perturb.importance import Importance
    from perturb.internals.features.loop import Features

    maps = np.random.default_rng(0).random((30, 8, 8)).astype(np.float32)
    maps[3] = np.nan
    shown = Importance(maps, np.ones(1), maps[:, None], *[maps[:, :1, 0]] * 3)._repr_html_()
    assert shown.count("<img ") == 24
    assert "and 6 more" in shown
    images, ok = np.zeros((2, 8, 8, 3)), np.array([True, False])
    shown = Features(images, np.ones(2), np.ones(2), ok, ok, images[..., 0])._repr_html_()
    assert shown.count("<img ") == 2
    assert "1, not started" in shown
    walked = Walk(np.array([-1.0, 1.0]), np.zeros((2, 3)), {"image": images})
    assert walked._repr_html_().count("<img ") == 2


def test_units_show_as_a_table_of_the_best():
    from perturb.internals import Names, Verdicts
    from perturb.units import Dissection, Effects

    rng = np.random.default_rng(0)
    iou, ones, yes = rng.random((20, 2)), np.ones((20, 2)), np.arange(20) % 2 == 0
    blank = dict.fromkeys(Dissection._fields)
    found = Dissection(
        **blank
        | {"layer": "relu", "concepts": ("<sky>", "sea"), "best": iou.argmax(1), "adjusted": iou}
        | {"iou": iou, "iou_low": 0 * ones, "iou_high": ones, "chance": 0 * ones}
        | {"interpretable": yes}
    )
    shown = found._repr_html_()
    assert shown.count("<tr>") == 13
    assert "the first 12 of 20" in shown
    assert "&lt;sky&gt;" in shown
    assert "(0.000 to 1.000)" in shown
    one = np.arange(20.0)
    judged = Verdicts(found, one, one / 20, yes, 0.3, one, one, one, 0.5)._repr_html_()
    # Those that pass come first, the highest score among them.
    assert judged.index("<td") < judged.index(">18<") < judged.index(">16<")
    assert "10 of 20 units pass" in judged
    assert "30% of random units" in judged
    names = Names(("sea", None), ("sea", "sky"), *[np.full(2, 0.5)] * 5)._repr_html_()
    assert "1 of 2 units have a name" in names
    assert "no name (best: sky)" in names
    change = np.array([[0.1, -0.3], [np.nan, np.nan]])
    effects = Effects(
        **dict.fromkeys(Effects._fields, change)
        | {"layer": "relu", "concepts": ("sky", "sea"), "sets": np.eye(2, 4) > 0}
    )
    assert "sea" in effects._repr_html_()


def test_heat_rises_in_lightness():
    from perturb import drawing

    drawn = drawing.heat(np.linspace(0, 1, 16).reshape(1, 4, 4)).astype(int)
    light = drawn.reshape(-1, 3) @ [299, 587, 114]
    assert (np.diff(light) > 0).all()


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
