"""A region for a PyTorch network, run by PyTorch: pip install torch."""

import jax
import torch

import perturb

net = torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 5, stride=2),
    torch.nn.ReLU(),
    torch.nn.AdaptiveAvgPool2d(1),
    torch.nn.Flatten(),
    torch.nn.Linear(8, 4),
).eval()
model = perturb.adapters.from_torch(net, engine="torch", mean=0.5, std=0.25)
images = perturb.demo(count=2).images

# The same numbers as in PyTorch, or an error that says what differs.
with torch.no_grad():
    source = net((torch.tensor(images).permute(0, 3, 1, 2) - 0.5) / 0.25).numpy()
print("largest difference:", perturb.check_parity(model, images, source))
result = perturb.extremal(
    model, images, source.argmax(-1), areas=(0.2,), steps=20, key=jax.random.key(0)
)
print(result)
