"""Attributions against each other, picture by picture, beside a control that knows nothing."""

import jax

import perturb
from perturb import attribution, metrics

model, images, targets = perturb.demo(count=8)
maps = {
    "Grad-CAM": attribution.grad_cam(model, images, targets, layer="relu#6"),
    "occlusion": attribution.occlusion(model, images, targets),
    "random": attribution.random(model, images, targets, key=jax.random.key(0)),
}
areas = {name: metrics.insertion(model, images, targets, m).area for name, m in maps.items()}
for name, values in areas.items():
    mean, lead = metrics.mean_interval(values), metrics.paired(values, areas["random"])
    print(
        f"{name:10} insertion {mean.value:.2f} ({mean.low:.2f} to {mean.high:.2f}), "
        f"over random {lead.value:+.2f} ({lead.low:+.2f} to {lead.high:+.2f})"
    )
