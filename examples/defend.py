"""Do heat maps tell attacked pictures from clean ones? A small one of the figures' experiment."""

import jax
import numpy as np

import perturb
from perturb import defence
from perturb.embedded import world

model = perturb.embedded.load("demo")
drawn = world.render_batch(5, range(160))
attacked = defence.pgd(model, drawn.image, drawn.target, epsilon=6 / 255, key=jax.random.key(0))
pictures = np.concatenate([drawn.image, attacked])
labels = np.concatenate([drawn.target, drawn.target])
marks = np.repeat([0, 1], len(drawn.image))
answers = np.asarray(model(pictures)).argmax(-1)
print(f"right {np.mean(answers == labels, where=marks == 0):.0%} on clean pictures, ", end="")
print(f"{np.mean(answers == labels, where=marks == 1):.0%} on attacked ones")

maps = defence.class_maps(model, pictures, classes=range(10))
known = np.arange(len(marks)) % 160 < 120  # the rest of the scenes is held out
detector = defence.train(
    maps[known], answers[known], marks[known], labels[known], classes=10, key=jax.random.key(1)
)
found = defence.predict(detector, maps[~known], answers[~known])
area, low, high = defence.area_under_roc(found.attacked, marks[~known])
print(f"attacked or clean, area under the ROC curve {area:.2f} ({low:.2f} to {high:.2f})")
