"""A network of PyTorch run by torch itself: its masks beside torchax's, its time beside torchray's,
and many calls.

  python -m benchmarks.engines masks    # IoU of the masks of both engines, and of one with itself
  python -m benchmarks.engines masks --wide  # the network in 64 bits: both engines round alike
  python -m benchmarks.engines time     # seconds a mask beside torchray's, ResNet-18
  python -m benchmarks.engines calls    # 200 calls beside work of XLA's own threads

`masks` needs torchax and `PERTURB_DATA`, `time` torchray. Of `time` and `calls` weights are random:
seconds do not depend on them. `masks --net=resnet18` takes random weights too.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

import perturb
from launch import rival
from perturb import adapters, evidence

# Steps of a mask that reach torchray's quality after its 800 iterations, as in `launch.bench`.
STEPS = 100


def resnet(name: str = "resnet18") -> Any:
    """The network of torchvision, with random weights and settled statistics."""
    import torch

    # Seeded, so that both engines and every turn see the same weights.
    torch.manual_seed(0)
    net = getattr(rival.torchvision().models, name)(weights=None)
    # A net begins in training mode: one pass fills the statistics of its normalisations.
    with torch.no_grad():
        net(torch.rand(16, 3, 64, 64))
    return net.eval()


def in_64_bits(net: Any) -> Any:
    """The network computed in float64, from float32 pictures to float32 outputs."""
    import torch

    class Wide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Any) -> Any:
            # Here and not once before: an engine may keep the weights as float32.
            tensors = dict([*self.net.named_parameters(), *self.net.named_buffers()])
            wide = {k: v.double() if v.is_floating_point() else v for k, v in tensors.items()}
            return torch.func.functional_call(self.net, wide, (x.double(),)).float()

    return Wide().eval()


def squeezenet(folder: pathlib.Path) -> Any:
    """SqueezeNet 1.1 with the weights of `PERTURB_DATA`."""
    from safetensors.torch import load_file

    net = rival.torchvision().models.squeezenet1_1(weights=None)
    net.load_state_dict(load_file(os.fspath(folder / "weights" / "squeezenet1_1.safetensors")))
    return net.eval()


def photographs(folder: pathlib.Path, px: int, count: int) -> np.ndarray:
    """The first photographs in order of their names, `[count, px, px, 3]`."""
    files = sorted(p for p in (folder / "imagenet").rglob("*") if p.suffix in (".jpg", ".JPEG"))
    geometry = perturb.short_side(px * 8 // 7).crop(px)
    opened = [PIL.Image.open(f).convert("RGB") for f in files[:count]]
    # Of each the picture, without the box that it was cut from.
    return np.stack([geometry.apply(image)[0] for image in opened])


def masks(name: str, px: int, steps: int, wide: bool) -> dict[str, Any]:
    """Masks of the same network through both engines, and beside them what rounding alone does."""
    folder = pathlib.Path(os.environ["PERTURB_DATA"])
    net = squeezenet(folder) if name == "squeezenet1_1" else resnet(name)
    if wide:
        jax.config.update("jax_enable_x64", True)
        net = in_64_bits(net)
    images = photographs(folder, px, 4)
    known = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    models = {e: adapters.from_torch(net, engine=e, **known) for e in ("torch", "torchax")}
    top = np.asarray(models["torchax"](images)).argmax(-1)
    # The control: one engine with itself, every value of the pictures moved to the next float32.
    runs = {
        "torch": ("torch", images),
        "torchax": ("torchax", images),
        "control": ("torchax", np.nextafter(images, np.float32(1))),
    }
    found = {
        run: perturb.extremal(
            models[engine],
            shown,
            top,
            areas=(0.1, 0.2),
            steps=steps,
            key=jax.random.key(0),
        ).masks
        for run, (engine, shown) in runs.items()
    }
    row: dict[str, Any] = {"net": name, "wide": wide, "px": px, "steps": steps}
    row |= apart(models, images, top)
    for title, run in (("iou", "torch"), ("control", "control")):
        iou = evidence.fills.iou(found[run], found["torchax"])
        row |= {title: float(iou.mean()), f"{title}_lowest": float(iou.min())}
    return row


@jax.jit
def outputs_and_gradient(model: perturb.Model, x: jax.Array, targets: jax.Array) -> Any:
    """Log-probabilities and the gradient of the targets' at the pixels."""

    def score(x: jax.Array) -> Any:
        y = jax.nn.log_softmax(model(x))
        return jnp.take_along_axis(y, targets[:, None], 1).sum(), y

    gradient, y = jax.grad(score, has_aux=True)(x)
    return y, gradient


def apart(
    models: dict[str, perturb.Model], images: np.ndarray, targets: np.ndarray
) -> dict[str, float]:
    """How far the engines lie apart before any step: of the largest output and gradient."""
    ours, theirs = (outputs_and_gradient(models[e], images, targets) for e in ("torch", "torchax"))
    pairs = zip(("outputs", "gradient"), ours, theirs, strict=True)
    return {n: float(jnp.abs(a - b).max() / jnp.abs(b).max()) for n, a, b in pairs}


def seconds(px: int, slots: int, steps: int, turns: int) -> dict[str, Any]:
    """Seconds a mask of ours and of torchray, which take turns; steps and iterations are scaled."""
    model = adapters.from_torch(resnet(), engine="torch")
    images = np.random.default_rng(0).random((slots, px, px, 3), np.float32)
    theirs = {clock: rival.iterations("resnet18", [0.1], steps, clock=clock) for clock in CLOCKS}

    def ours(clock: str, count: int) -> float:
        begin = CLOCKS[clock]()
        perturb.extremal(model, images, list(range(slots)), areas=0.1, steps=count)
        return CLOCKS[clock]() - begin

    # Both lengths once before, which leaves out what is compiled.
    ours("wall", 1)
    ours("wall", 1 + steps)
    rows: dict[str, list[tuple[float, float]]] = {clock: [] for clock in CLOCKS}
    for _ in range(turns):
        for clock in CLOCKS:
            # The difference leaves out what happens once, on either side.
            step = (ours(clock, 1 + steps) - ours(clock, 1)) / steps / slots
            # From the steps timed to those that the same quality takes, on either side.
            rows[clock].append((step * STEPS, theirs[clock]() * rival.STEPS))
    out: dict[str, Any] = {"px": px, "slots": slots, "turns": turns}
    for clock, pairs in rows.items():
        out[f"ours_{clock}_s"] = statistics.median(a for a, _ in pairs)
        out[f"torchray_{clock}_s"] = statistics.median(b for _, b in pairs)
        # Of each pair's own ratio: what the machine was doing then met both of them.
        out[f"times_{clock}"] = statistics.median(b / a for a, b in pairs)
    return out


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def calls(px: int, count: int) -> dict[str, Any]:
    """Outputs and gradients again and again while XLA's own threads are busy."""
    model = adapters.from_torch(resnet(), engine="torch")
    images = np.random.default_rng(0).random((8, px, px, 3), np.float32)

    @jax.jit
    def once(model: perturb.Model, x: jax.Array) -> Any:
        return jax.value_and_grad(lambda x: model(x)[:, 0].sum())(x)

    # A product of matrices, which XLA spreads over its threads.
    busy = jax.jit(lambda x: jnp.sin(x @ x).sum())
    square = jnp.ones((256, 256))
    first, took = once(model, images), []
    same = True
    for _ in range(count):
        begin = time.perf_counter()
        # Not waited for: it runs while torch is called from XLA.
        busy(square)
        again = jax.block_until_ready(once(model, images))
        took.append(time.perf_counter() - begin)
        pairs = zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True)
        # The same bits, not nearly: a race in the call would change some.
        same &= all(bool((a == b).all()) for a, b in pairs)
    return {"calls": count, "same": same, "median_s": statistics.median(took), "max_s": max(took)}


def main() -> None:
    """Prints a line of JSON."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("what", choices=["masks", "time", "calls"])
    parse.add_argument("--net", default="squeezenet1_1", help="of masks; others are random")
    parse.add_argument("--wide", action="store_true", help="of masks: the network in 64 bits")
    parse.add_argument("--px", type=int, default=0)
    parse.add_argument("--steps", type=int, default=0)
    parse.add_argument("--slots", type=int, default=8)
    parse.add_argument("--turns", type=int, default=3)
    parse.add_argument("--count", type=int, default=200)
    flags = parse.parse_args()
    if flags.what == "masks":
        row = masks(flags.net, flags.px or 128, flags.steps or 60, flags.wide)
    elif flags.what == "time":
        row = seconds(flags.px or 224, flags.slots, flags.steps or 5, flags.turns)
    else:
        row = calls(flags.px or 64, flags.count)
    print(json.dumps({"what": flags.what, **row}))


if __name__ == "__main__":
    main()
