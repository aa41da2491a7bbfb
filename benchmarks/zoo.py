"""Real architectures of ten libraries, each through one adapter: masks, channels, Grad-CAM and
evidence in a line each.

  python -m benchmarks.zoo --out=out/zoo [--only=timm] [--third] [--table=docs/results/zoo.md]

Weights are random: what is shown is that a network runs, that its outputs are those of its own
framework (parity, of the largest output), and that every tool gives what it promises. Rows are kept
in `OUT/zoo.jsonl`; what is there already is not run again. What is not installed is said and left
out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import time
import traceback
from collections.abc import Callable
from typing import Any

# Before any of them is imported: they read their settings once.
os.environ.setdefault("KERAS_BACKEND", "jax")
# Ultralytics writes its settings somewhere, and asks for nothing.
os.environ.setdefault("YOLO_CONFIG_DIR", "/tmp")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import jax.numpy as jnp
import numpy as np

import perturb
from launch import rival
from perturb import adapters, attribution, evidence


@dataclasses.dataclass(frozen=True)
class Entry:
    """A network of the zoo.

    Attributes:
      origin, name: the library that it is from, and its name there.
      adapter: how the library takes it.
      make: gives the model and the framework's own function, both of images `[B, H, W, 3]` in [0,
        1].
      side: of the pictures in px.
      third: whether `make adapters` runs it, with the packages that it has.
    """

    origin: str
    name: str
    adapter: str
    make: Callable[[], tuple[perturb.Model, Callable[[np.ndarray], Any]]]
    side: int = 64
    third: bool = False


def torch_model(
    net: Any, engine: str = "torch", read: Callable[[Any], Any] | None = None, **options: Any
) -> Any:
    """The model of a torch module, and torch itself without anything of this library."""
    import torch

    net = net.eval()
    model = adapters.from_torch(net, engine=engine, **options)

    def own(images: np.ndarray) -> Any:
        x = torch.tensor(images, requires_grad=True)
        # As a loader gives them: on strided memory torch rounds otherwise.
        y = net(x.permute(0, 3, 1, 2).contiguous())
        y = y if read is None else read(y)
        y = y.permute(0, 2, 3, 1) if y.ndim == 4 else y
        (slope,) = torch.autograd.grad(y[..., 1].sum(), x)
        return y.detach().numpy(), slope.numpy()

    return model, own


def by_jax(outputs: Callable[[Any], Any]) -> Callable[[np.ndarray], Any]:
    """The same of a framework that differentiates with JAX."""

    def own(images: np.ndarray) -> Any:
        def paid(x: Any) -> Any:
            y = outputs(x)
            return y[..., 1].sum(), y

        slope, y = jax.grad(paid, has_aux=True)(jnp.asarray(images))
        return np.asarray(y), np.asarray(slope)

    return own


def _seeded() -> None:
    import torch

    torch.manual_seed(0)


def timm_net(name: str, engine: str, side: int, third: bool = False, **options: Any) -> Entry:
    def make() -> Any:
        rival.torchvision()  # timm imports it
        import timm

        _seeded()
        net = timm.create_model(name, num_classes=10, **options)
        # Some start with a head of zeros, which answers nothing.
        if not net.get_classifier().weight.any():
            net.get_classifier().reset_parameters()
        return torch_model(net, engine)

    return Entry("timm", name, engine, make, side, third)


def torch_net(
    library: str,
    name: str,
    build: Callable[[], Any],
    *,
    side: int = 64,
    third: bool = False,
    engine: str = "torch",
    read: Callable[[Any], Any] | None = None,
    **options: Any,
) -> Entry:
    def make() -> Any:
        _seeded()
        return torch_model(build(), engine, read, **options)

    return Entry(library, name, engine, make, side, third)


def keras_net(name: str, side: int = 64, third: bool = False, **options: Any) -> Entry:
    def make() -> Any:
        import keras

        keras.utils.set_random_seed(0)
        build = getattr(keras.applications, name)
        net = build(weights=None, classes=10, input_shape=(side, side, 3), **options)
        # Inference: normalisation by its own statistics, and nothing dropped.
        own = by_jax(lambda x: net(x, training=False))
        return adapters.from_keras(net, output="probabilities"), own

    return Entry("keras", name, "keras", make, side, third)


def hugging(
    name: str, config: str, sizes: dict[str, Any], *, maps: bool = False, third: bool = False
) -> Entry:
    def make() -> Any:
        import transformers

        _seeded()
        given = {"num_labels": 10} | sizes
        net = getattr(transformers, name)(getattr(transformers, config)(**given))
        options = {"output": "segmentation"} if maps else {}
        return torch_model(net, "torch", lambda y: y.logits, select="logits", **options)

    return Entry("transformers", name, "torch", make, 64, third)


def detector(build: Callable[[], Any]) -> Any:
    """A detector's best score of every class over all its boxes: what there is to explain of it."""
    import torch

    class Scores(torch.nn.Module):
        def __init__(self, net: Any) -> None:
            super().__init__()
            self.backbone, self.head = net.backbone, net.head

        def forward(self, x: Any) -> Any:
            # Before boxes are chosen: a choice has no slope.
            maps = list(self.backbone(x).values())
            return self.head(maps)["cls_logits"].amax(1)

    return Scores(build())


def open_clip_net() -> Any:
    """Pictures against ten random texts, as zero-shot classification has it."""
    import open_clip
    import torch

    clip = open_clip.CLIP(
        32,
        {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32},
        {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1},
    )

    class ZeroShot(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = clip.visual
            self.texts = torch.nn.Parameter(
                torch.nn.functional.normalize(torch.randn(10, 32), dim=1)
            )

        def forward(self, x: Any) -> Any:
            # A hundred is the largest scale that CLIP's training lets it reach.
            return 100 * torch.nn.functional.normalize(self.visual(x), dim=1) @ self.texts.T

    return ZeroShot()


def yolo(task: str) -> Any:
    from ultralytics.nn.tasks import ClassificationModel, DetectionModel

    if task == "classify":
        return ClassificationModel("yolov8n-cls.yaml", ch=3, nc=10, verbose=False)
    return DetectionModel("yolov8n.yaml", ch=3, nc=10, verbose=False)


def nnx_net() -> Any:
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, into: int, out: int, rngs: Any) -> None:
            self.a = nnx.Conv(into, out, (3, 3), strides=2, rngs=rngs)
            self.norm = nnx.BatchNorm(out, rngs=rngs, use_running_average=True)
            self.b = nnx.Conv(out, out, (3, 3), rngs=rngs)
            self.by = nnx.Conv(into, out, (1, 1), strides=2, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return nnx.relu(self.b(nnx.relu(self.norm(self.a(x)))) + self.by(x))

    class ResNet(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.one, self.two = Block(8, 16, rngs), Block(16, 32, rngs)
            self.head = nnx.Linear(32, 10, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.head(self.two(self.one(nnx.relu(self.stem(x)))).mean((1, 2)))

    net = ResNet(nnx.Rngs(0))
    return adapters.from_nnx(net), by_jax(net)


def equinox_net() -> Any:
    import equinox as eqx

    keys = jax.random.split(jax.random.key(0), 4)
    net = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 16, 3, 2, 1, key=keys[0]),
            eqx.nn.Lambda(jax.nn.gelu),
            eqx.nn.GroupNorm(4, 16),
            eqx.nn.Conv2d(16, 32, 3, 2, 1, key=keys[1]),
            eqx.nn.Lambda(jax.nn.gelu),
            eqx.nn.AdaptiveAvgPool2d(1),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(32, 10, key=keys[2]),
        ]
    )
    own = by_jax(lambda x: jax.vmap(net)(jnp.moveaxis(x, -1, 1)))
    return adapters.from_equinox(net), own


def haiku_net() -> Any:
    """Haiku needs no adapter: its `apply` is the model's, in inference mode."""
    import haiku as hk

    def forward(x: jax.Array) -> jax.Array:
        for width in (16, 32):
            x = hk.Conv2D(width, 3, stride=2)(x)
            x = jax.nn.relu(hk.GroupNorm(4)(x))
            x = perturb.taps.tag(x, f"block{width}")
        return hk.Linear(10)(x.mean((1, 2)))

    net = hk.without_apply_rng(hk.transform(forward))
    weights = net.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    own = by_jax(lambda x: net.apply(weights, x))
    return perturb.Model(net.apply, weights, name="haiku"), own


def zoo() -> list[Entry]:
    """All entries; nothing is built yet."""
    small_vit = {
        "image_size": 64,
        "patch_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    stages = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 24, 32, 48]}

    def torchvision(name: str, **options: Any) -> Callable[[], Any]:
        def build() -> Any:
            import torchvision.models as models

            given = {"weights": None} | options
            if "weights_backbone" in given or name.startswith(
                ("ssd", "retina", "lraspp", "deeplab")
            ):
                given |= {"weights_backbone": None}
            return models.get_model(name, **given)

        return build

    def monai(name: str, **options: Any) -> Callable[[], Any]:
        def build() -> Any:
            import monai.networks.nets as nets

            return getattr(nets, name)(spatial_dims=2, in_channels=3, **options)

        return build

    def smp(name: str) -> Callable[[], Any]:
        def build() -> Any:
            import segmentation_models_pytorch as package

            return getattr(package, name)("resnet18", encoder_weights=None, classes=5)

        return build

    maps = {"output": "segmentation"}
    return [
        timm_net("resnet18", "torchax", 64, third=True),
        timm_net("convnext_atto", "torchax", 64),
        timm_net("vit_tiny_patch16_224", "torchax", 64, third=True, img_size=64, depth=3),
        timm_net("densenet121", "torch", 64),
        timm_net("efficientnet_b0", "torch", 64),
        timm_net("mobilenetv3_small_050", "torch", 64, third=True),
        timm_net("regnetx_002", "torch", 64, third=True),
        timm_net(
            "swin_tiny_patch4_window7_224",
            "torch",
            224,
            depths=(1, 1, 1, 1),
            embed_dim=24,
            num_heads=(1, 2, 4, 8),
        ),
        timm_net("mixer_s32_224", "torch", 224),
        timm_net("levit_128s", "torch", 224, third=True),
        timm_net("eva02_tiny_patch14_224", "torch", 56, img_size=56),
        timm_net("poolformer_s12", "torch", 64),
        timm_net("xcit_nano_12_p16_224", "torch", 64),
        timm_net("edgenext_xx_small", "torch", 64),
        timm_net("ghostnet_050", "torch", 64, third=True),
        timm_net("repvgg_a0", "torch", 64),
        timm_net("inception_next_atto", "torch", 64, third=True),
        torch_net(
            "torchvision",
            "ssdlite320_mobilenet_v3_large",
            lambda: detector(torchvision("ssdlite320_mobilenet_v3_large", num_classes=10)),
            third=True,
        ),
        torch_net(
            "torchvision",
            "retinanet_resnet50_fpn",
            lambda: detector(torchvision("retinanet_resnet50_fpn", num_classes=10)),
            third=True,
        ),
        torch_net(
            "torchvision",
            "lraspp_mobilenet_v3_large",
            torchvision("lraspp_mobilenet_v3_large", num_classes=5),
            read=lambda y: y["out"],
            select="out",
            third=True,
            **maps,
        ),
        torch_net(
            "torchvision",
            "deeplabv3_mobilenet_v3_large",
            torchvision("deeplabv3_mobilenet_v3_large", num_classes=5, aux_loss=True),
            read=lambda y: y["out"],
            select="out",
            **maps,
        ),
        hugging("ViTForImageClassification", "ViTConfig", small_vit),
        hugging(
            "SwinForImageClassification",
            "SwinConfig",
            {
                "image_size": 64,
                "window_size": 4,
                "embed_dim": 16,
                "depths": [1, 1],
                "num_heads": [1, 2],
            },
        ),
        hugging("ConvNextV2ForImageClassification", "ConvNextV2Config", stages),
        hugging(
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            {
                "depths": [1, 1, 1, 1],
                "hidden_sizes": [8, 16, 16, 32],
                "num_attention_heads": [1, 1, 2, 2],
                "decoder_hidden_size": 16,
            },
            maps=True,
        ),
        hugging("Dinov2ForImageClassification", "Dinov2Config", small_vit | {"mlp_ratio": 2}),
        torch_net("open_clip", "CLIP (zero shot)", open_clip_net),
        torch_net("smp", "Unet (resnet18)", smp("Unet"), **maps),
        torch_net("smp", "FPN (resnet18)", smp("FPN"), **maps),
        torch_net(
            "monai",
            "DenseNet",
            monai(
                "DenseNet", out_channels=10, init_features=16, growth_rate=8, block_config=(2, 2, 2)
            ),
        ),
        torch_net(
            "monai",
            "UNet",
            monai("UNet", out_channels=5, channels=(8, 16, 32), strides=(2, 2)),
            **maps,
        ),
        torch_net(
            "ultralytics",
            "yolov8n-cls",
            lambda: yolo("classify"),
            read=lambda y: y[0] if isinstance(y, tuple) else y,
            select=0,
            output="probabilities",
        ),
        torch_net(
            "ultralytics",
            "yolov8n",
            lambda: yolo("detect"),
            read=best_of_boxes,
            select=best_of_boxes,
            output="multilabel",
        ),
        keras_net("MobileNet", alpha=0.25, third=True),
        keras_net("MobileNetV2", alpha=0.35, third=True),
        keras_net("MobileNetV3Small", alpha=0.75, minimalistic=True, include_preprocessing=False),
        keras_net("VGG16", side=32, third=True),
        keras_net("ResNet50V2"),
        keras_net("Xception", side=71),
        keras_net("ConvNeXtTiny", include_preprocessing=False),
        Entry("flax", "ResNet in NNX", "nnx", nnx_net, 64, True),
        Entry("equinox", "Sequential", "equinox", equinox_net, 64, True),
        Entry("haiku", "Conv and GroupNorm", "none needed", haiku_net, 64, True),
    ]


def best_of_boxes(y: Any) -> Any:
    """The best score of every class over YOLO's boxes as a logit, whichever framework holds
    them.
    """
    scores = (y[0] if isinstance(y, (tuple, list)) else y)[:, 4:]
    if isinstance(scores, jax.Array):
        # YOLO gives probabilities; a logit is what rewards are made of.
        return jax.scipy.special.logit(scores.max(-1))
    return scores.amax(-1).logit()


@jax.jit
def _outputs_and_slope(model: perturb.Model, images: jax.Array) -> Any:
    def paid(x: jax.Array) -> Any:
        y = model(x)
        return y[..., 1].sum(), y

    slope, y = jax.grad(paid, has_aux=True)(images)
    return y, slope


def _apart(got: Any, want: Any) -> float:
    # Of the largest output, so that outputs near 0 do not decide.
    return float(np.abs(np.asarray(got) - want).max() / np.abs(want).max())


def run(entry: Entry) -> dict[str, Any]:
    """Everything once; returns the row of the table."""
    start = time.perf_counter()
    model, own = entry.make()
    images = np.random.default_rng(0).random((2, entry.side, entry.side, 3), np.float32)
    want, steepest = own(images)
    got, slope = _outputs_and_slope(model, images)
    assert got.shape == want.shape, (got.shape, want.shape)
    # Of a segmentation the target is a class everywhere.
    targets: Any = [1, 2]
    row: dict[str, Any] = {
        "library": entry.origin,
        "name": entry.name,
        "adapter": entry.adapter,
        "side": entry.side,
        "parity": _apart(got, want),
        "slope": _apart(slope, steepest),
    }
    layer = attribution._common.last_layer(model, images)  # the one that Grad-CAM takes
    row["layer"] = layer
    key = jax.random.key(0)
    paid: Any = {"key": key}
    if model.output == "segmentation":
        paid["reward"] = "score"
    found = perturb.extremal(model, images, targets, areas=0.2, steps=4, operator="blur", **paid)
    share = (found.masks > 0.5).mean((2, 3))
    # To one pixel, which is how exactly a number of pixels can meet a share.
    row["masks"] = bool(np.abs(share - 0.2).max() <= 1 / entry.side**2 + 1e-6)
    chosen = perturb.channels(model, images, targets, layer=layer, counts=2, steps=2, **paid)
    row["channels"] = bool((chosen.channels.sum(-1) == 2).all())
    cam = attribution.grad_cam(model, images, targets, layer=layer)
    row["grad_cam"] = bool(
        cam.shape == images.shape[:3]
        and np.isfinite(cam).all()
        and cam.min() >= 0
        # Of random weights it may be nothing but negative; the product place by place is never 0.
        and np.abs(attribution.linear_approx(model, images, targets, layer=layer)).max() > 0
    )
    cards = evidence.card(model, images, targets, found, operator="blur", controls=2, **paid)
    row["evidence"] = str(cards.verdict[0, 0])
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| library | network | adapter | px | outputs | gradient | masks | channels | Grad-CAM at "
        "| evidence |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if "error" in r:
            named = f"| {r['library']} | {r['name']} | {r['adapter']} "
            lines.append(named + f"| | | | | | | {r['error'][:120]} |")
            continue
        yes = {True: "yes", False: "**no**"}
        at = f"`{r['layer']}`" if r["grad_cam"] else "**no**"
        lines.append(
            f"| {r['library']} | {r['name']} | {r['adapter']} | {r['side']} | {r['parity']:.0e} | "
            f"{'' if r.get('slope') is None else format(r['slope'], '.0e')} | "
            f"{yes[r['masks']]} | {yes[r['channels']]} | {at} | {r['evidence']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs what the command line asks for; 1 if any does not work."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--out", default="out/zoo")
    parse.add_argument("--only", default="", help="parts of names of libraries or networks: a,b")
    parse.add_argument("--third", action="store_true", help="the third that `make adapters` runs")
    parse.add_argument("--table", default="", help="a Markdown file whose table is written anew")
    flags = parse.parse_args()
    out = pathlib.Path(flags.out)
    out.mkdir(parents=True, exist_ok=True)
    file = out / "zoo.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    # What failed is tried again; what is there is not.
    done = {(r["library"], r["name"]): r for r in rows if "error" not in r}
    for entry in zoo():
        called = f"{entry.origin} {entry.name}".lower()
        wanted = any(part in called for part in flags.only.lower().split(","))
        if not wanted or (flags.third and not entry.third) or (entry.origin, entry.name) in done:
            continue
        try:
            row = run(entry)
        except ImportError as error:
            print(f"{entry.origin} {entry.name}: left out, {error}", flush=True)
            continue
        except Exception as error:
            traceback.print_exc()
            said = " ".join(str(error).split())[:300]
            row = {
                "library": entry.origin,
                "name": entry.name,
                "adapter": entry.adapter,
                "error": f"{type(error).__name__}: {said}",
            }
        print(json.dumps(row), flush=True)
        with file.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        done[entry.origin, entry.name] = row
    # In the order of the list, whatever order they were run in.
    order = [(e.origin, e.name) for e in zoo()]
    found = [done[name] for name in order if name in done]
    if flags.table:
        path = pathlib.Path(flags.table)
        head, _, rest = path.read_text().partition("| library |")
        # What follows the table stays: its first empty line ends it.
        _, gap, behind = rest.partition("\n\n")
        path.write_text(head + table(found) + gap[1:] + behind)
    bad = [
        r
        for r in found
        if "error" in r
        or not (r["masks"] and r["channels"] and r["grad_cam"])
        # Float32 through some dozens of layers, whose sums two frameworks order differently.
        or not max(r["parity"], r.get("slope") or 0) <= 1e-4
    ]
    print(f"{len(found)} networks, {len(bad)} with a fault: {[r['name'] for r in bad]}")
    return int(bool(bad))


if __name__ == "__main__":
    raise SystemExit(main())
