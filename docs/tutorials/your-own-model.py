# %% [markdown]
# # Your own model
#
# A model is a pure function and its weights. Here a small network is written in Flax and trained
# for some seconds, then looked at: the same steps as for a network of yours.
#
# ## A network to look at
#
# It is to name the background of a picture of the embedded world: clouds, stripes, grass and the
# like.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import perturb
from perturb.embedded import world

drawn = world.render_batch(1, range(800))
kinds = sorted({f.background for f in drawn.factors})
labels = np.array([kinds.index(f.background) for f in drawn.factors])
print(len(kinds), "kinds:", ", ".join(kinds))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (24, 32):
            x = nn.relu(nn.Conv(width, (5, 5), strides=2)(x))
        return nn.Dense(len(kinds))(jnp.sqrt((x * x).mean((1, 2)) + 1e-4))


MEAN, STD = 0.5, 0.25
net, optimiser = Net(), optax.adam(4e-3)
variables = net.init(jax.random.key(0), jnp.zeros((2, 64, 64, 3)))


def loss(variables, x, y):
    logits = net.apply(variables, (x - MEAN) / STD)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@jax.jit
def step(variables, state, x, y):
    updates, state = optimiser.update(jax.grad(loss)(variables, x, y), state)
    return optax.apply_updates(variables, updates), state


state = optimiser.init(variables)
rng = np.random.default_rng(0)
for _ in range(300):
    batch = rng.choice(700, 48, replace=False)
    variables, state = step(variables, state, drawn.image[batch], labels[batch])

# %% [markdown]
# ## One line
#
# Normalisation goes inside. `check_model` runs it once and refuses what the methods could not
# trust: outputs that change with the neighbours in a batch, probabilities that are called logits,
# NaN.

# %%
model = perturb.adapters.from_linen(net, variables, mean=MEAN, std=STD, class_names=kinds)
held_out = slice(700, 800)
images, targets = drawn.image[held_out], labels[held_out]
outputs = perturb.check_model(model, images)
print(
    f"right on {(outputs.argmax(-1) == targets).mean():.0%} of pictures that it was not trained on"
)

# %% [markdown]
# Keras, PyTorch, NNX and Equinox have such a line each: [your model](../guides/model.md).
#
# ## Is it the same model?
#
# A wrong mean or channel order gives regions that look plausible and are wrong. So compare once
# with outputs of the source:

# %%
source = net.apply(variables, (images[:8] - MEAN) / STD)
print("largest difference:", perturb.check_parity(model, images[:8], source))
wrong = perturb.adapters.from_linen(net, variables, mean=0.0, std=1.0)
try:
    perturb.check_parity(wrong, images[:8], source)
except ValueError as error:
    print(error)

# %% [markdown]
# ## What does it look at?

# %%
chosen = [int(np.flatnonzero(targets == k)[0]) for k in range(len(kinds))]
shown, asked = images[chosen], targets[chosen]
result = perturb.extremal(model, shown, asked, areas=(0.2, 0.4), key=jax.random.key(0))
result.show(shown, side=140)

# %%
inside = (result.masks[:, 1] > 0.5) & (drawn.label[held_out][chosen] != 0)
for kind, share in zip(kinds, inside.mean((1, 2)) / 0.4, strict=True):
    print(f"{kind:10} {share:.0%} of the region lies on a thing, the rest on the background")

# %% [markdown]
# The ground, mostly, as it should be. Where a region holds a thing, the network takes the pattern
# of the thing for that of the ground: seconds of training leave such faults, and the regions show
# them.
#
# ## Its layers
#
# Every activation has a name; no hooks, no change of the network.

# %%
for name, shape in list(perturb.taps.names(model, shown).items())[:8]:
    print(f"{name:24} {getattr(shape, 'shape', shape)}")

# %%
layer = [name for name in perturb.taps.names(model, shown) if "relu" in name][-1]
maps = perturb.attribution.grad_cam(model, shown, asked, layer=layer)
figure, axes = plt.subplots(1, len(kinds), figsize=(2 * len(kinds), 2.3))
for axis, image, heat, kind in zip(axes, shown, maps, kinds, strict=True):
    axis.imshow(image)
    axis.imshow(heat, cmap="viridis", alpha=0.5)
    axis.set_title(kind)
    axis.axis("off")

# %% [markdown]
# ## Photographs from a folder
#
# The model's `geometry` says how a photograph becomes an input; `load_images` applies it, and
# turns, composites and scales by the same rules as the command line.

# %%
import dataclasses
import pathlib
import tempfile

import PIL.Image

folder = pathlib.Path(tempfile.mkdtemp())
for i, image in enumerate(shown[:3]):
    pixels = np.uint8(np.round(image * 255))
    PIL.Image.fromarray(pixels).resize((320, 240)).save(folder / f"{i}.png")
model = dataclasses.replace(model, geometry=perturb.short_side(64).crop(64))
print(perturb.load_images(folder, model).shape)
