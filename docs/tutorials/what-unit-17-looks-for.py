# %% [markdown]
# # What does unit 17 look for?
#
# A picture is optimised, from noise, until a unit answers as much as it can. On the embedded
# networks that takes seconds.

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import perturb
from perturb.embedded import world
from perturb.internals import features

model, natural, _ = perturb.demo(count=64)
wanted = features.channel("conv6", 17)
# Frequencies keep the strength that they have in pictures of this world, which are no photographs.
recipe = dataclasses.replace(
    features.preset("maco"),
    parametrisation=features.Maco(spectrum=features.learn(natural)),
    steps=128,
)
found = features.visualise(model, wanted, preset=recipe, key=jax.random.key(0))


def strip(pictures, titles):
    _, axes = plt.subplots(1, len(pictures), figsize=(1.75 * len(pictures), 2.1))
    for axis, picture, title in zip(np.atleast_1d(axes), pictures, titles, strict=True):
        axis.imshow(picture)
        axis.set_title(title, fontsize=8)
        axis.axis("off")


values = features.evaluate(model, wanted, natural)[0]
top = np.argsort(-values)[:4]
strip(
    [found.images[0], *natural[top]],
    [f"optimised: {found.values[0]:.1f}", *(f"natural: {values[i]:.1f}" for i in top)],
)

# %% [markdown]
# Left the optimised picture, right the pictures of the world that the unit answers to most, each
# with its answer. A picture that excites a unit shows what excites it, which need not be what it
# meets: that comparison is part of the result.

# %%
known = features.quality(model, wanted, found, natural)
print(known.verdict[0])
for reason in known.reasons[0]:
    print("   ", reason)

# %% [markdown]
# `found.started` is False where a unit stayed silent: then the picture is noise, and nothing else
# says so.
#
# ## Several units in one program

# %%
units = jnp.arange(16, 22)
several = features.visualise(
    model, features.channel("conv6", units), preset=recipe, key=jax.random.key(0)
)
strip(several.images, [f"unit {u}, {v:.1f}" for u, v in zip(units, several.values, strict=True)])
print("the same picture as alone:", bool((several.images[1] == found.images[0]).all()))

# %% [markdown]
# ## What do classes look like, to either network?
#
# Objectives are not only units: a class, a direction, a whole layer. `contrast` is a class
# against all others. The cheat was trained where a stamp gave the class away.

# %%
cheat = perturb.embedded.load("demo_cheat")
classes = jnp.array([3, 4, 8])
for name, network in (("honest", model), ("cheat", cheat)):
    seen = features.visualise(
        network, features.contrast(classes), preset=recipe, key=jax.random.key(2)
    )
    strip(seen.images, [f"{name}: {world.class_names[c]}" for c in classes])

# %% [markdown]
# The honest network's pictures take on the shapes; the cheat's have none, only small spots of high
# contrast, as a stamp has.
#
# ## What a layer still knows
#
# The reverse: pictures that a layer cannot tell from yours. Early layers give the picture back,
# late ones something else.

# %%
picture = natural[:2]
early, late = (
    features.invert(model, layer, picture, prior="tv", steps=96, key=jax.random.key(3))
    for layer in ("conv2", "conv5")
)
strip(
    [picture[0], early.images[0], late.images[0]],
    ["the picture", f"from conv2, {early.psnr[0]:.0f} dB", f"from conv5, {late.psnr[0]:.0f} dB"],
)

# %% [markdown]
# Presets, other objectives and the command line: [what does unit 17 look
# for?](../guides/features.md)
