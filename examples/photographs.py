"""The region that the network needs, for a folder of photographs.

python examples/photographs.py [FOLDER]; without one, on pictures of the embedded world.
"""

import pathlib
import sys
import tempfile

import jax
import numpy as np
import PIL.Image

import perturb

# For your own photographs: perturb.load_model("squeezenet1_1", weights="squeezenet1_1.safetensors")
model, pictures, _ = perturb.demo(count=3)
if len(sys.argv) > 1:
    folder = pathlib.Path(sys.argv[1])
else:
    folder = pathlib.Path(tempfile.mkdtemp())
    for i, picture in enumerate(pictures):
        PIL.Image.fromarray(np.uint8(np.round(picture * 255))).save(folder / f"{i}.png")

images = perturb.load_images(folder, model)
answers = np.asarray(model(images)).argmax(-1)
result = perturb.extremal(model, images, answers, areas=(0.1, 0.2), key=jax.random.key(0))
card = perturb.evidence.card(model, images, answers, result, key=jax.random.key(1))
for i, answer in enumerate(answers):
    print(model.class_names[answer], card.verdict[i, 1], *card.reasons[i][1], sep="; ")
print("drawn into", result.save("out/examples/photographs", images))
