# %% [markdown]
# # Compare attributions
#
# Fifteen methods draw heat maps, and they disagree. Which one is to be believed? Not the
# prettiest: the one that does what a map promises, measured on the same pictures, beside controls
# that never looked at the network.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import perturb
from perturb import attribution, metrics
from perturb.embedded import world

model, images, targets = perturb.demo(count=12)
key = jax.random.key(0)
maps = {
    "ours, nested masks": attribution.nested(model, images, targets, key=key),
    "Grad-CAM": attribution.grad_cam(model, images, targets, layer="relu#6"),
    "occlusion": attribution.occlusion(model, images, targets),
    "guided backprop": attribution.guided_backprop(model, images, targets),
    "integrated gradients": attribution.integrated_gradients(model, images, targets),
    "gradient": attribution.gradient(model, images, targets),
    "centre (control)": attribution.centre(model, images, targets),
    "random (control)": attribution.random(model, images, targets, key=key),
}
maps = {name: np.asarray(found) for name, found in maps.items()}

# %%
figure, axes = plt.subplots(3, len(maps) + 1, figsize=(11, 3.9))
for row, i in zip(axes, (0, 3, 4), strict=True):
    row[0].imshow(images[i])
    for axis, (name, found) in zip(row[1:], maps.items(), strict=True):
        axis.imshow(found[i], cmap="viridis")
        if i == 0:
            axis.set_title(name.replace(" ", "\n", 1), fontsize=7)
    for axis in row:
        axis.axis("off")

# %% [markdown]
# ## Three questions
#
# - **Insertion**: pixels appear, most important first. How sure is the network on the way? More
#   is better.
# - **Deletion**: they vanish, most important first. Less is better.
# - **Energy**: in this world the object is known to the pixel. Which share of the map lies on it?
#
# Every number is a mean over the pictures with a 95 % bootstrap interval.

# %%
truth = world.render_batch(7, range(12)).label == 1 + targets[:, None, None]
scores = {
    name: {
        "insertion": metrics.insertion(model, images, targets, found).area,
        "deletion": metrics.deletion(model, images, targets, found).area,
        "energy": metrics.energy(found, truth),
    }
    for name, found in maps.items()
}
print(f"{'':22}{'insertion':>22}{'deletion':>22}{'energy':>22}")
for name, found in scores.items():
    cells = [metrics.mean_interval(values) for values in found.values()]
    print(f"{name:22}" + "".join(f"{c.value:8.2f} ({c.low:5.2f} to {c.high:4.2f})" for c in cells))

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 3), sharey=True)
for axis, metric in zip(axes, ("insertion", "deletion", "energy"), strict=True):
    found = [metrics.mean_interval(scores[name][metric]) for name in maps]
    value = np.array([one.value for one in found])
    ends = np.array([[one.value - one.low, one.high - one.value] for one in found]).T
    colours = ["#999999" if "control" in name else "#0072b2" for name in maps]
    axis.barh(range(len(maps)), value, xerr=ends, color=colours)
    axis.set_yticks(range(len(maps)), list(maps), fontsize=8)
    axis.set_title(metric)
axes[0].invert_yaxis()
figure.tight_layout()

# %% [markdown]
# ## Is a difference more than luck?
#
# The methods saw the same pictures, so compare them picture by picture. An interval that holds 0
# says: not told apart.

# %%
best = scores["ours, nested masks"]["insertion"]
for name in list(maps)[1:]:
    found = metrics.paired(best, scores[name]["insertion"])
    print(
        f"insertion, ours less {name:22} {found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})"
    )

# %% [markdown]
# No method is first everywhere: a map that keeps the answer best need not be the one that
# destroys it fastest. And a number depends on its conventions: steps and fill alone move a
# deletion area by a factor of four. Compare within one run, never figures from two papers.
#
# ## Does a map depend on the network at all?
#
# Randomise the network's weights, and the map should change. One that stays is a picture of the
# picture.

# %%
from perturb.internals import random_network

other = random_network(model, jax.random.key(1))
for name, method in (
    ("Grad-CAM", lambda net: attribution.grad_cam(net, images, targets, layer="relu#6")),
    ("guided backprop", lambda net: attribution.guided_backprop(net, images, targets)),
    ("gradient", lambda net: attribution.gradient(net, images, targets)),
    ("Sobel (control)", lambda net: attribution.sobel(net, images, targets)),
):
    alike = metrics.spearman(np.abs(method(model)), np.abs(method(other)))
    print(f"{name:16} rank correlation with the map of a random network {np.mean(alike):+.2f}")

# %% [markdown]
# On many pictures, as a job with one page and one table: [compare methods](../guides/compare.md).
