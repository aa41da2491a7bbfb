# %% [markdown]
# # Find the cheat, without a single mask
#
# Two networks name the same shapes and are right equally often. One had to look at the shape; the
# other was trained where a small stamp gave the class away. Ask what their units answer to.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import perturb
from perturb import internals
from perturb.embedded import world

drawn = world.render_batch(11, range(120), watermark="random")
networks = {
    "honest": perturb.embedded.load("demo"),
    "cheat": perturb.embedded.load("demo_cheat"),
}
stamped = world.render_batch(11, range(120), watermark="right")
for name, network in networks.items():
    right = np.mean(np.asarray(network(stamped.image)).argmax(-1) == stamped.target)
    print(f"{name:7} right on {right:.0%} of pictures with the true stamp")

# %% [markdown]
# ## Every pixel has a label
#
# The world knows what each pixel shows: ten shapes, three kinds of clutter, the stamp. A unit is
# active where it is among its own strongest 1 % of all places of all pictures; the overlap with
# every concept is counted. Half of the units of a network with *random* weights would pass as
# detectors by the published rule, so each unit is held against the same layer of random networks.

# %%
names = world.label_names[1:]
masks = drawn.label[..., None] == 1 + np.arange(len(names))
layer = "relu#6"
found = {
    name: internals.dissect_pictures(
        network,
        drawn.image,
        layers=[layer],
        masks=masks,
        concepts=names,
        networks=2,
        rotations=0,
        key=jax.random.key(0),
        enlarge="bilinear",
        replicates=0,
        batch_size=40,
    )[layer]
    for name, network in networks.items()
}
for name, verdicts in found.items():
    best = [names[k] for k in verdicts.table.best[verdicts.passes]]
    counts = {c: best.count(c) for c in sorted(set(best), key=best.count, reverse=True)}
    print(f"{name:7} {verdicts.passes.sum()} of {len(verdicts.passes)} units pass:", counts)

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
for axis, (name, verdicts) in zip(axes, found.items(), strict=True):
    best = verdicts.table.best[verdicts.passes]
    colours = ["#d55e00" if n == "watermark" else "#0072b2" for n in names]
    axis.bar(range(len(names)), np.bincount(best, minlength=len(names)), color=colours)
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axis.set_title(f"{name}: units of {layer} that pass")

# %% [markdown]
# The last layer of the honest network is a set of shapes. That of the cheat is one thing, many
# times.
#
# ## What one unit answers to
#
# The pictures that a unit answers to most, with the place where it is active:

# %%
from perturb import drawing


def portrait(network, verdicts):
    unit = int(np.argmax(np.where(verdicts.passes, verdicts.score, -np.inf)))
    top = verdicts.table.top_indices[unit][:5]
    maps = np.asarray(internals.activations(network, drawn.image[top], layer))[..., unit]
    side = drawn.image.shape[1] // maps.shape[1]
    strong = (maps >= maps.max((1, 2), keepdims=True) / 2).repeat(side, 1).repeat(side, 2)
    pictures = [
        drawing.overlay(drawing.levels(x), m.astype(np.float32), 150)
        for x, m in zip(drawn.image[top], strong, strict=True)
    ]
    return unit, pictures


for name, network in networks.items():
    unit, pictures = portrait(network, found[name])
    figure, axes = plt.subplots(1, len(pictures), figsize=(8, 1.9))
    for axis, picture in zip(axes, pictures, strict=True):
        axis.imshow(picture)
        axis.axis("off")
    figure.suptitle(f"{name}: unit {unit}, {names[found[name].table.best[unit]]}", fontsize=9)

# %% [markdown]
# ## What the answer loses without them
#
# Switch the units off that pass as the stamp. If the cheat had looked at the shape as well, it
# could fall back on it.

# %%
units = internals.units_for(found["cheat"], "watermark")
off = internals.circuits.exchange_units(networks["cheat"], layer, units)
outcome = internals.judge(networks["cheat"], off, {"stamped": (stamped.image, stamped.target)})
before, after = outcome["stamped"].before, outcome["stamped"].after
print(f"{len(units)} units off: right on {before:.0%} before, {after:.0%} after")

# %% [markdown]
# Chance is 10 %: the cheat has nothing else. The figures on more pictures and layers, and two
# more repairs, stand in [find the cheat](../find-the-cheat.md); `make demo-units` draws the page.
