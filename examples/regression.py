"""Which part of a picture carries a number? Here: how red it is."""

import jax
import jax.numpy as jnp

import perturb


def redness(_, images):
    red, green, blue = jnp.moveaxis(images, -1, 0)
    return jax.nn.relu(red - jnp.maximum(green, blue)).mean((1, 2))


model = perturb.Model(redness, (), output="regression", name="redness")
images = perturb.demo(count=4).images
# "value" asks for much of the number; "regression" for the number to stay where it was.
result = perturb.extremal(
    model, images, [0] * 4, areas=(0.1,), reward="value", steps=40, key=jax.random.key(0)
)
for whole, part in zip(result.score_original, result.score_binary[:, 0], strict=True):
    print(f"redness of the picture {whole:.3f}, with a tenth of it kept {part:.3f}")
