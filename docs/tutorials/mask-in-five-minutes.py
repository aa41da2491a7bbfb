# %% [markdown]
# # A mask in five minutes
#
# What does a classifier need to see, and is that region really the reason for its answer? This
# page runs on the embedded network and its pictures: nothing is downloaded, and every picture
# below was drawn when the page was built.

# %%
import textwrap

import jax
import matplotlib.pyplot as plt

import perturb

model, images, targets = perturb.demo(count=4)
names = [model.class_names[target] for target in targets]

figure, axes = plt.subplots(1, 4, figsize=(8, 2.3))
for axis, image, name in zip(axes, images, names, strict=True):
    axis.imshow(image)
    axis.set_title(name)
    axis.axis("off")

# %% [markdown]
# `images` are `[B, H, W, C]` in [0, 1], `targets` the numbers of the classes. For your own
# photographs, `perturb.load_images("photos/", model)` makes such an array.
#
# ## The region
#
# `extremal` looks for the region of a given area that best keeps the answer while everything else
# is filled in. Three areas here: 5, 10 and 20 % of the picture.

# %%
result = perturb.extremal(model, images, targets, areas=(0.05, 0.1, 0.2), key=jax.random.key(0))
result.show(images, side=160)

# %% [markdown]
# Rows are pictures, columns are areas. The areas are exact, and every mask has its scores: what
# the network gives for the whole picture, and for exactly that region with the rest blurred.

# %%
for i, name in enumerate(names):
    alone = ", ".join(f"{p:.2f}" for p in result.probability_binary[i])
    print(f"{name:9} whole picture {result.probability_original[i]:.2f}, region alone {alone}")

# %% [markdown]
# ## Is the region the reason?
#
# A search always finds something. `evidence.card` asks what speaks against it: does the region
# work under fills that it was not sought with? Does it beat copies of itself at other places?
# What is the score of the filled picture alone?

# %%
card = perturb.evidence.card(model, images, targets, result, key=jax.random.key(1))
for i, name in enumerate(names):
    print(f"{name}, region of {result.areas[1]:.0%}: {card.verdict[i, 1]}")
    for reason in card.reasons[i][1]:
        print(textwrap.fill(reason, 84, initial_indent="  - ", subsequent_indent="    "))

# %% [markdown]
# `holds` means that this network's answer rests on this region, under these fills. `doubtful` and
# `fails` say why not: often the area asked for is too small for the object.
#
# ## Two networks with the same score
#
# The embedded cheat was trained on pictures with a small stamp that gives the class away. On
# stamped pictures it is as good as the honest network. The region tells them apart.

# %%
cheat, stamped, targets = perturb.demo("demo_cheat", 4, watermark="right")
for network in (model, cheat):
    answers = network(stamped).argmax(-1)
    print(f"{network.name:10} right on {(answers == targets).sum()} of {len(targets)}")

# %%
regions = [
    perturb.extremal(network, stamped, targets, areas=(0.06,), key=jax.random.key(0))
    for network in (model, cheat)
]
figure, axes = plt.subplots(2, 4, figsize=(8, 4.4))
for row, region, network in zip(axes, regions, (model, cheat), strict=True):
    for axis, drawn in zip(row, region.overlay(stamped)[:, 0], strict=True):
        axis.imshow(drawn)
        axis.set_xticks([])
        axis.set_yticks([])
    row[0].set_ylabel(network.name)

# %% [markdown]
# Above, the shape; below, the stamp. How to find the same without a single mask is told in [find
# the cheat](find-the-cheat.md).
#
# ## Next
#
# - [Your own model](your-own-model.md) in place of the embedded one
# - [Compare attributions](compare-attributions.md): how regions and heat maps do against each
#   other
# - [Is the region the reason?](../guides/evidence.md): every line of the card
