"""Which units draw what? Switch the object off on the left half, and brush stripes in there."""

import jax
import numpy as np
import PIL.Image

import gan_dissect
from launch import demo
from perturb import drawing

generator, layer = demo.load_generator(), "layer1"
table = gan_dissect.dissect(
    generator,
    layer=layer,
    concepts=demo.segments(),
    samples=128,
    quantile=0.9,
    key=jax.random.key(0),
    replicates=0,
)
units = gan_dissect.ranked(table, "object", 8)
print("units of the object:", units)

latents = gan_dissect.sample(generator, jax.random.key(1), 6)
side = gan_dissect.layers(generator)[layer][0]
left = np.zeros((side, side), np.float32)
left[:, : side // 2] = 1
removed = gan_dissect.set_units(generator, latents, {layer: dict.fromkeys(units, 0.0)}, where=left)

# On is twice the value above which a unit counts as active.
stripes = gan_dissect.ranked(table, "stripes", 8)
print("units of stripes:", stripes)
levels = {unit: 2 * float(table.thresholds[unit]) for unit in stripes}
painted = gan_dissect.set_units(generator, latents, {layer: levels}, where=left)

drawn = (generator(latents), removed, painted)
rows = [drawing.levels(np.asarray(outputs["image"])) for outputs in drawn]
rows = [[drawing.enlarge(picture, 128) for picture in row] for row in rows]
PIL.Image.fromarray(drawing.sheet(rows)).save("painted.png")
print("as drawn, without the object, with stripes: painted.png")
