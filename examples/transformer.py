"""Heat maps and a region for a vision transformer; attention is found in the trace."""

import jax
import numpy as np

import perturb
from perturb import attribution, metrics
from perturb.embedded import world

model, images, targets = perturb.demo("demo_vit", 6)
truth = world.render_batch(7, range(6)).label == 1 + targets[:, None, None]
for name in ("libragrad", "attn_lrp", "rollout"):
    maps = attribution.get(name)(model, images, targets)
    print(f"{name:10} share of the map on the object {metrics.energy(maps, truth).mean():.2f}")

result = perturb.extremal(model, images, targets, areas=(0.15,), steps=40, key=jax.random.key(0))
share = ((result.masks[:, 0] > 0.5) & truth).sum((1, 2)) / (result.masks[:, 0] > 0.5).sum((1, 2))
print(f"extremal   share of the region on the object {np.mean(share):.2f}")
