# %% [markdown]
# # A GAN's units and directions
#
# A generator turns random numbers into pictures. What do its units draw, what goes when they are
# off, and in which direction of its latent space does an attribute lie? The embedded generator
# draws the small world of the other pages, so this runs in a minute.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import gan_dissect
from launch import demo

generator = demo.load_generator()
latents = gan_dissect.sample(generator, jax.random.key(3), 8)
samples = np.asarray(generator(latents)["image"])


def strip(pictures, title=""):
    figure, axes = plt.subplots(1, len(pictures), figsize=(1.2 * len(pictures), 1.5))
    for axis, picture in zip(axes, pictures, strict=True):
        axis.imshow(picture)
        axis.axis("off")
    figure.suptitle(title, fontsize=9)


strip(samples, "eight samples")
for name, shape in gan_dissect.layers(generator).items():
    if name.startswith("layer"):
        print(name, shape)

# %% [markdown]
# ## Which unit goes with which concept?
#
# A concept is anything that says of every pixel whether it is there; here a segmentation network
# that was trained on the world's exact labels. A unit is called active on its strongest tenth,
# and the overlap of "active" and "is there" is counted.

# %%
layer, concepts = "layer1", demo.segments()
table = gan_dissect.dissect(
    generator,
    layer=layer,
    concepts=concepts,
    samples=400,
    quantile=0.9,
    key=jax.random.key(0),
    replicates=50,
)
for concept in table.concepts:
    best = gan_dissect.ranked(table, concept, 4)
    k = table.concepts.index(concept)
    found = ", ".join(f"{unit} ({table.iou[unit, k]:.2f})" for unit in best)
    print(f"{concept:10} best units and their IoU: {found}")

# %% [markdown]
# ## Off, and what goes with them
#
# Agreement is no cause. So the best units of a concept are switched off, on the same samples, and
# every concept is measured before and after, beside random sets of as many units.

# %%
concept = "object"
units = [int(unit) for unit in gan_dissect.ranked(table, concept, 8)]
effect = gan_dissect.unit_effects(
    generator,
    layer=layer,
    units=[units],
    concepts=concepts,
    samples=64,
    controls=12,
    key=jax.random.key(1),
    replicates=100,
)
figure, axis = plt.subplots(figsize=(6, 2.6))
places = np.arange(len(effect.concepts))
low, high = np.quantile(effect.control_change[0], [0.0, 1.0], axis=0)
axis.bar(places, high - low, bottom=low, color="#cccccc", label="12 random sets of as many units")
axis.plot(places, effect.change[0], "o", color="#d55e00", label=f"the best units of {concept}")
axis.axhline(0, color="black", lw=0.5)
axis.set_xticks(places, effect.concepts)
axis.set_ylabel("change of area")
axis.legend(fontsize=8)
k = effect.concepts.index(concept)
print(
    f"left of {concept}: {effect.ratio[0, k]:.0%}, "
    f"p = {effect.p_value[0, k]:.2f} among 12 random sets"
)

# %% [markdown]
# What lies inside the grey band is no more than any units would do. With R random sets a p-value
# is never below 2 / (1 + R): take 40 or more when you report one.

# %%
off = gan_dissect.set_units(generator, latents, {layer: dict.fromkeys(units, 0.0)})
strip(samples, "as drawn")
strip(np.asarray(off["image"]), f"without the best units of {concept}")

# %% [markdown]
# ## On, at a place
#
# The same units switched *on* under a brush, twice as strong as they are where they count as
# active. Does the concept appear there, and does it take everywhere? `context_effects` lays a brush
# at a random place of every sample and sorts the effect by what stood there before.

# %%
levels = 2 * table.on_levels
side = gan_dissect.layers(generator)[layer][0]
line = np.arange(side)
brush = (np.hypot(line[:, None] - 0.7 * side, line - 0.3 * side) < 0.22 * side).astype(float)
for concept in ("object", "stripes", "grass"):
    units = [int(unit) for unit in gan_dissect.ranked(table, concept, 8)]
    edits = {layer: {unit: float(levels[unit]) for unit in units}}
    painted = gan_dissect.set_units(generator, latents, edits, where=brush)
    strip(np.asarray(painted["image"]), f"{concept} brushed in")
    found = gan_dissect.context_effects(
        generator,
        layer=layer,
        concept=concept,
        units=units,
        value=levels,
        concepts=concepts,
        samples=64,
        key=jax.random.key(1),
    )
    for where, change, count in zip(
        found.contexts, found.context_change, found.context_samples, strict=True
    ):
        if count:
            print(f"{concept:8} on {where:9} {change:+.2f} of the place ({count} samples)")

# %% [markdown]
# A background takes beside another one, and hardly where the object stands: that hides what lies
# behind it. Where an insertion does not take, the generator knows something of its scenes.

# %% [markdown]
# ## A direction
#
# Numbers about whole pictures are concepts too. A linear boundary between samples with much and
# with little of one gives a direction; a walk along it shows what changes.

# %%
attribute = "background lightness"
attributes = demo.attributes()
many = gan_dissect.sample(generator, jax.random.key(5), 600)
values = np.asarray(attributes(generator(many)))
score = values[:, attributes.names.index(attribute)]
direction = gan_dissect.attribute_direction(many, score)
for latent in latents[:3]:
    walk = gan_dissect.walk(generator, latent, direction, steps=np.linspace(-3, 3, 7))
    strip(np.asarray(walk.outputs["image"]), attribute)

# %% [markdown]
# What else changes along the way is the more interesting question: `gan_dissect.rescore` measures
# it beside random directions, and `project` takes out what another attribute explains. See
# [directions and walks](../guides/walks.md) and [what a GAN's units do](../guides/gan-units.md).
