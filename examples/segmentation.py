"""What does a segmentation network need to see, to name what lies in one region?"""

import jax
import jax.numpy as jnp
import numpy as np

import perturb
from perturb.embedded import world

drawn = world.render_batch(7, range(2))
objects = drawn.label == 1 + drawn.target[:, None, None]
# A network of one rule: a pixel is a thing where the smoothed colour is near that of the object.
colours = np.stack([x[o].mean(0) for x, o in zip(drawn.image, objects, strict=True)])


def apply(colours, images):
    window = (1, 5, 5, 1)
    smooth = jax.lax.reduce_window(images, 0.0, jax.lax.add, window, (1, 1, 1, 1), "SAME") / 25
    far = ((smooth[..., None, :] - colours) ** 2).sum(-1)
    return jnp.concatenate([jnp.full_like(far[..., :1], -1.0), -40 * far], -1)


model = perturb.Model(
    apply, jnp.asarray(colours), output="segmentation", class_names=("ground", "first", "second")
)
targets = (np.array([1, 2]), objects)  # a class, and the region whose label is asked about
result = perturb.extremal(
    model, drawn.image, targets, areas=(0.1, 0.2), reward="region", key=jax.random.key(0)
)
inside = (result.masks > 0.5) & objects[:, None]
print("share of the region on the object:", (inside.mean((2, 3)) / result.achieved_area).round(2))
