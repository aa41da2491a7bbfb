"""In which direction of the latent space does an attribute lie, and what is drawn along it?"""

import jax
import numpy as np
import PIL.Image

import gan_dissect
from launch import demo
from perturb import drawing

generator, attributes = demo.load_generator(), demo.attributes()
latents = gan_dissect.sample(generator, jax.random.key(0), 500)
scores = np.asarray(attributes(generator(latents)))
score = scores[:, attributes.names.index("background lightness")]
direction = gan_dissect.attribute_direction(latents, score)
frames = [
    gan_dissect.walk(generator, latent, direction, steps=np.linspace(-3, 3, 7)).outputs["image"]
    for latent in latents[:3]
]
rows = [[drawing.enlarge(drawing.levels(np.asarray(p)), 128) for p in walk] for walk in frames]
PIL.Image.fromarray(drawing.sheet(rows)).save("walk.png")
print("three latents, from dark to light: walk.png")
