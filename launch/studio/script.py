"""The Python that gives what a page of the studio shows: to be copied into a notebook."""

from __future__ import annotations

from collections.abc import Mapping

from launch.studio import masks as masks_lib
from launch.studio import painting as painting_lib
from launch.studio.world import SIDE, World
from perturb.types import Options

__all__ = ["generator", "masks"]


def masks(world: World, asked: Options) -> str:
    """The calls for the region of a picture: `{model, picture, target, area}`."""
    name, picture = str(asked.get("model")), str(asked.get("picture"))
    entry = world.gallery.get(picture)
    world.pixels(picture, name)
    area = masks_lib.number(asked, "area", 0.001, 1.0)
    target = asked.get("target")
    # Text and not templates of code: the tests run what comes out.
    lines = ["import types", "", "import jax", "import numpy as np", "", "import perturb"]
    if name in ("demo", "demo_cheat"):
        lines += ["from launch import demo", "", f"model = demo.load({name!r})"]
    elif ":" in name:
        module, _, function = name.partition(":")
        # A network of the user's own comes from where the flag said.
        lines += [f"from {module} import {function}", "", f"model = {function}()"]
    else:
        lines += ["", f"model = perturb.load_model({name!r}, weights={world.weights.get(name)!r})"]
    # Embedded pictures can be drawn again from their number; others must be read.
    if entry is not None and entry.pixels is not None:
        lines[lines.index("import perturb")] += "\nfrom launch.demo import world"
        lines += [f"image = {_embedded(picture)}"]
    else:
        path = str(entry.path) if entry is not None else "your picture.png"
        lines[lines.index("import perturb")] += "\nfrom launch.inputs import images"
        lines += [
            f"geometry = model.geometry or perturb.squash({SIDE})",
            f"image = images.read({path!r}, geometry, model.channels).pixels",
        ]
    # Without a target the script asks the network, as the page did.
    wanted = (
        f"[{target!r}]" if target not in (None, "") else "np.asarray(model(image[None])).argmax(-1)"
    )
    lines += [
        f"targets = {wanted}",
        "key = jax.random.key(0)",
        "found = perturb.importance_map(",
        f"    model, image[None], targets, question={masks_lib.QUESTION!r}, "
        f"operator={masks_lib.FILL!r},",
        f"    areas={masks_lib.AREAS!r}, key=key",
        ")",
        f"area = {area:g}",
        "order = np.argsort(found.area[0], axis=None, kind='stable')",
        "region = np.zeros(order.size, np.float32)",
        "region[order[: max(1, round(area * order.size))]] = 1  # the best pixels of the one map",
        "region = region.reshape(found.area[0].shape)",
        "result = types.SimpleNamespace(masks=region[None, None], scores=found.heat[:, None])",
        "card = perturb.evidence.card(",
        f"    model, image[None], targets, result, operator={masks_lib.FILL!r}, key=key",
        ")",
        f"print(card.verdict[0, 0], card.probability[{masks_lib.FILL!r}][0, 0], "
        "*card.reasons[0][0], sep='\\n')",
    ]
    return "\n".join(lines) + "\n"


def _embedded(picture: str) -> str:
    """The call that draws a picture of the embedded world, from its id."""
    shown, _, mark = picture.partition("-mark-")
    index, _, name = shown.partition("-")
    stamp = None if not mark else "right" if mark == name else "wrong"
    return f"world.render(7, {int(index)}, watermark={stamp!r}).image"


def generator(painting: painting_lib.Painting, asked: Options) -> str:
    """The calls for a painted wall: `{first, count, steps, moves, held}`."""
    first = int(masks_lib.number(asked, "first", 0, 2**31 - 1))
    count = int(masks_lib.number(asked, "count", 1, painting_lib.WALL))
    steps = painting.steps(asked)
    # A slider at 0 moves nothing and needs no line.
    moves = {n: d for n, d in dict(asked.get("moves") or {}).items() if d}
    held = [str(h) for h in asked.get("held") or []]
    name = painting.generator.name
    lines = ["import jax", "import numpy as np", "", "import gan_dissect"]
    if name == "demo":
        lines += [
            "from launch import demo",
            "",
            "G, concepts = demo.load_generator(), demo.segments()",
        ]
    else:
        lines += ["", f"G = gan_dissect.load_generator({name!r}, weights='...')", "concepts = ..."]
    lines += [
        "key = jax.random.key(0)",
        f"z = gan_dissect.sample(G, key, {count}, start={first})",
    ]
    if moves:
        lines += _moves(moves, held)
    if not steps:
        lines += ["images = np.asarray(G(z)['image'])"]
        return "\n".join(lines) + "\n"
    # One edit a layer, in which later strokes lie over earlier ones, as on the page.
    lines += ["strength, value, levels = {}, {}, {}"]
    for layer in dict.fromkeys(step.layer for step in steps):
        lines += [
            f"shape = gan_dissect.layers(G)[{layer!r}]",
            f"strength[{layer!r}], value[{layer!r}] = np.zeros(shape), np.zeros(shape)",
            "table = gan_dissect.dissect(",
            f"    G, layer={layer!r}, concepts=concepts, samples={painting_lib.DISSECTED}, "
            f"quantile={painting_lib.QUANTILE},",
            f"    key=jax.random.fold_in(key, 1), batch_size={painting_lib.BATCH},",
            ")",
            f"levels[{layer!r}] = table.on_levels",
        ]
    for step in steps:
        # The brush as lists of cells: short where a stroke is small, and readable.
        rows, columns = (part.tolist() for part in step.place.nonzero())
        lines += [
            f"rows, columns, units = np.array({rows}), np.array({columns}), "
            f"np.array({list(step.units)})",
            "at = rows[:, None], columns[:, None], units[None]",
            f"strength[{step.layer!r}][at] = 1",
            f"value[{step.layer!r}][at] = {step.level:g} * levels[{step.layer!r}][units]",
        ]
    lines += [
        "from perturb import taps",
        "from gan_dissect.interventions import Edit, edit_units",
        "edits = {n: (lambda x, n=n: edit_units(x, Edit(strength[n], value[n]))) for n in "
        "strength}",
        "images = np.asarray(taps.edit(G, edits)(z)['image'])  # [B, H, W, C]",
    ]
    return "\n".join(lines) + "\n"


def _moves(moves: Mapping[str, float], held: list[str]) -> list[str]:
    return [
        "from launch import directions",
        "scorers = demo.attributes()",
        "parts = [",
        # The same keys and parts as in the page, or the directions would differ.
        "    directions.score_samples(G, scorers, jax.random.fold_in(key, 3 + s), "
        f"min({painting_lib.BATCH * 4}, {painting_lib.FITTED} - s), {painting_lib.BATCH})",
        f"    for s in range(0, {painting_lib.FITTED}, {painting_lib.BATCH * 4})",
        "]",
        "latents, scores = (np.concatenate(p) for p in zip(*parts))",
        "normal = {",
        "    n: gan_dissect.attribute_direction(latents, scores[:, scorers.names.index(n)]).normal",
        f"    for n in {sorted({*moves, *held})!r}",
        "}",
        f"held = {held!r}",
        f"for name, distance in {dict(moves)!r}.items():",
        "    others = [normal[h] for h in held if h != name]",
        "    along = gan_dissect.project(normal[name], others).normal if others else normal[name]",
        "    z = z + np.float32(distance) * along.astype(np.float32)",
    ]
