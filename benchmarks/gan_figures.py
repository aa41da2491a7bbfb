"""The full-size figures of gan_dissect that docs/results/generators.md quotes:
`PERTURB_DATA=... python -m benchmarks.gan_figures NAME`.

Names: ace, artifacts, boundary, espnet, goldens, inversion, memory, sweep, walk. Each prints a
Markdown table; a second argument makes it smaller (samples, units, frames or steps, as the function
says). The short forms of these stand in the tests.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import gan_dissect
from gan_dissect import (
    Concepts,
    Generator,
    ace,
    attribute_direction,
    calibrate,
    causal_effects,
    dissect,
    invert,
    load_generator,
    ranked,
    sample,
    unit_effects,
)
from gan_dissect.artifacts import (
    activation_rate,
    conditional_distance,
    kernel_distance,
    repair,
    repair_effect,
)
from gan_dissect.inversion import linear_encoder
from perturb import Model, taps
from perturb.units.concepts import labels, segmenter
from perturb.units.counts import count, merge_counts
from perturb.units.interventions import Edit, edit_units
from perturb.units.quantiles import histogram, merge_histograms, quantiles
from perturb.units.table import table
from tests import graphnet

TILES = (
    "MegaManOneGANWith12Tiles_5_Epoch5000",
    "Mario1and2_Overworld_30_Epoch5000",
    "LodeRunnerOneGround100LevelsEpoch100000_20_6",
)
KEY = jax.random.key(0)


def tiles(data: pathlib.Path, name: str = TILES[0]) -> Generator:
    """A tile generator with its crop and the names of its tiles."""
    about = json.loads((data / "gan" / "tile_reference.json").read_text())["generators"][name]
    return load_generator(
        "tile_dcgan",
        weights=data / "weights" / f"{name}.safetensors",
        crop=about["crop"],
        label_names=about["tile_names"],
    )


def digits(data: pathlib.Path) -> Generator:
    """The DCGAN of digits."""
    return load_generator("dcgan", weights=data / "weights" / "mnist_dcgan_generator.safetensors")


class _Lenet:
    """Images `[B, 28, 28, 1]` to a node of LeNet; hashable by graph and node."""

    def __init__(self, graph: graphnet.Graph, node: str) -> None:
        self.graph, self.node = graph, node

    def __hash__(self) -> int:
        return hash((self.graph, self.node))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Lenet) and (self.graph, self.node) == (other.graph, other.node)

    def __call__(self, variables, images):
        # LeNet was trained on 32 x 32 px.
        image = jax.image.resize(images, (len(images), 32, 32, 1), "bilinear")
        return self.graph.nodes(variables, image.transpose(0, 3, 1, 2))[self.node]


def lenet(data: pathlib.Path, node: str = "logits", output: str = "embedding") -> Model:
    """The predictor of digits, or its features at a node."""
    graph, variables = graphnet.load(data / "weights" / "mnist_lenet5.json")
    return Model(_Lenet(graph, node), variables, output=output, name=f"lenet {node}")


def _logs(model: Model, outputs: dict[str, jax.Array]) -> jax.Array:
    return jax.nn.log_softmax(model(outputs["image"]))


def _probabilities(model: Model, outputs: dict[str, jax.Array]) -> jax.Array:
    return jax.nn.softmax(model(outputs["image"]))


DIGITS = tuple(map(str, range(10)))


@jax.jit
def _score(generator: Generator, scores: Concepts, z: jax.Array) -> jax.Array:
    return scores(generator(z))


def scored(generator: Generator, scores: Concepts, z: np.ndarray, batch: int = 250) -> np.ndarray:
    """Scores of many latents, in batches of one size."""
    # One size of batch is one program.
    rows = [_score(generator, scores, z[i : i + batch]) for i in range(0, len(z), batch)]
    return np.concatenate(rows)


def figure_ace(data: pathlib.Path, number: int | None = None) -> None:
    """Causal sets of 8 against the 8 of top IoU; `number` of training and of held-out samples."""
    n = number or 1024
    print(
        "| generator | tile | places | ACE | 95 % | top IoU | random, best of 20 | ACE - IoU | "
        "95 % | leakage ACE | leakage IoU |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    wins, clear, total = 0, 0, 0
    for name in TILES:
        generator = tiles(data, name)
        layer = next(
            k
            for k in gan_dissect.layers(generator)
            if k.endswith("128.relu") or k.endswith("128:relu")
        )
        found = dissect(generator, layer=layer, samples=(0, n), key=KEY, replicates=0)
        # In one sample of twenty at the least: rarer tiles have too few places to measure on.
        for tile in np.flatnonzero(found.concept_images >= n // 20):
            concept = generator.label_names[tile]
            common = {"layer": layer, "concept": concept, "key": KEY, "pairs": 100}
            try:
                cause = ace(generator, **common, samples=(0, n), start=found.iou[:, tile])
                effect = causal_effects(
                    generator,
                    **common,
                    # Not the samples that the sets were chosen on.
                    samples=(n, 2 * n),
                    value=cause.places.value,
                    # Eight of either kind, so that only the choice differs and not the number.
                    sets=[cause.order[:8], ranked(found, int(tile), 8)],
                )
            except ValueError as error:
                print(f"| {name[:9]} | {concept} | {error} |", flush=True)
                continue
            difference = effect.effect[0] - effect.effect[1]
            # Replicate by replicate, for both sets are measured on the same samples.
            low, high = np.percentile(effect.replicates[0] - effect.replicates[1], (2.5, 97.5))
            others = np.arange(len(effect.concepts)) != tile
            leak = (np.abs(effect.leak_ablated) + np.abs(effect.leak_inserted))[:, others].sum(
                1
            ) / 2
            print(
                f"| {name[:9]} | {concept} | {effect.pairs[0]}, {effect.pairs[1]} | "
                f"{effect.effect[0]:+.3f} | {effect.effect_low[0]:+.3f} to "
                f"{effect.effect_high[0]:+.3f} | {effect.effect[1]:+.3f} | "
                f"{effect.control_effect.max():+.3f} | {difference:+.3f} | {low:+.3f} to "
                f"{high:+.3f} | {leak[0]:.4f} | {leak[1]:.4f} |",
                flush=True,
            )
            total, wins, clear = total + 1, wins + (difference > 0), clear + (low > 0)
    print(f"\nlarger effect on {wins} of {total} ({wins / total:.0%}), interval above 0 on {clear}")


def figure_artifacts(data: pathlib.Path, number: int | None = None) -> None:
    """Artifact units of the digits; `number` of samples to find them on, and of held-out ones."""
    n = number or 1000
    generator, features = digits(data), lenet(data, "fc.relu6")
    images = np.load(data / "mnist" / "test_1000.npz")["images"][..., None].astype(np.float32) / 255
    read = jax.jit(lambda model, x: model(x))
    real = np.concatenate([read(features, images[i : i + 250]) for i in range(0, 1000, 250)])
    rng = np.random.default_rng(0)
    # One half of the digits finds the units, the other one judges the repair.
    order = rng.permutation(1000)
    fit, held = real[order[:500]], real[order[500:]]
    train, test = {"samples": (0, n), "key": KEY}, {"samples": (n, 2 * n), "key": KEY}
    print(
        "| layer | units | by | KID before | after | change | 95 % | 20 random sets | p | "
        "before, active 20 % | after |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    rates = {}
    for layer in ("gen.0.2", "gen.1.2", "gen.2.2"):
        units = gan_dissect.layers(generator)[layer][-1]
        common = {"layer": layer, "features": features}
        far = conditional_distance(generator, **common, real=fit, **train)
        rates[layer] = activation_rate(generator, layer=layer, **train)
        rare = rates[layer].mean((0, 1))
        for by, chosen in (("distance", np.argsort(-far)), ("rate", np.argsort(rare))):
            # A twelfth of a layer, and four where that would be less.
            got = repair_effect(
                generator, **common, units=chosen[: max(4, units // 12)], real=held, **test
            )
            null = got.control_change
            print(
                f"| {layer} | {len(got.units)} of {units} | {by} | {got.before:.3f} | "
                f"{got.after:.3f} | {got.change:+.3f} | {got.change_low:+.3f} to "
                f"{got.change_high:+.3f} | {null.min():+.3f} to {null.max():+.3f}, median "
                f"{np.median(null):+.3f} | {got.p_value:.2f} | {got.before_active:.3f} | "
                f"{got.after_active:.3f} |",
                flush=True,
            )
    # Sequential ablation of rare neurons, and of as many at random: the rates dealt out anew.
    # Latents after those that the rates were measured on.
    z = np.asarray(sample(generator, KEY, n, start=n))

    def distance(rate: dict[str, np.ndarray] | None) -> float:
        parts = [z[i : i + 250] for i in range(0, n, 250)]
        drawn = [generator(p) if rate is None else repair(generator, p, rate) for p in parts]
        return kernel_distance(np.concatenate([read(features, d["image"]) for d in drawn]), held)

    null = [
        # The same rates, given to other units: what any ablation of that size does.
        distance({k: rng.permutation(r.ravel()).reshape(r.shape) for k, r in rates.items()})
        for _ in range(10)
    ]
    print(
        f"\nrare neurons off in sequence: KID {distance(None):.3f} before, {distance(rates):.3f} "
        f"after; rates dealt out anew, 10 times: {min(null):.3f} to {max(null):.3f}"
    )


def figure_boundary(data: pathlib.Path, number: int | None = None) -> None:
    """Boundaries of the ten digits in the DCGAN's latents; `number` of samples."""
    n = number or 20_000
    generator = digits(data)
    scores = Concepts(_logs, DIGITS, lenet(data), kind="scores")
    z = np.asarray(sample(generator, KEY, n))
    s = scored(generator, scores, z)
    print("| digit | loss | accuracy, held out | AUC, held out | 95 % | AUC, all |")
    print("|---|---|---|---|---|---|")
    for loss in ("logistic", "hinge"):
        d = attribute_direction(z, s, loss=loss)
        for k in range(10):
            print(
                f"| {k} | {loss} | {d.accuracy_test[k]:.3f} | {d.auc_test[k]:.4f} "
                f"| {d.auc_low[k]:.4f} to {d.auc_high[k]:.4f} | {d.auc_all[k]:.3f} |"
            )
        print(f"lowest AUC, {loss}: {d.auc_test.min():.4f}")


def figure_walk(data: pathlib.Path, number: int | None = None) -> None:
    """Walks until LeNet gives each digit p = .9; `number` of latents."""
    generator = digits(data)
    model = lenet(data)
    # The direction is fitted on these latents; the walks below begin at others.
    z = np.asarray(sample(generator, KEY, 10_000))
    d = attribute_direction(z, scored(generator, Concepts(_logs, DIGITS, model, kind="scores"), z))
    scores = Concepts(_probabilities, DIGITS, model, kind="scores")
    start = np.asarray(sample(generator, jax.random.key(1), number or 100))
    print("| digit | reached | within .02 of .9 | median distance | p before, median |")
    print("|---|---|---|---|---|")
    hits = reached = 0
    for k in range(10):
        # Eight deviations of a normal latent, farther out than any sample lies.
        went = calibrate(generator, start, d.normal[k], scores, name=str(k), limit=8.0)
        p = scored(generator, scores, went.latents)[:, k]
        near = np.abs(p - 0.9) <= 0.02
        ok = went.reached
        hits, reached = hits + (near & ok).sum(), reached + ok.sum()
        print(
            f"| {k} | {ok.mean():.0%} | {near[ok].mean():.1%} | {np.nanmedian(went.position):.2f} "
            f"| {np.median(went.start):.3f} |",
            flush=True,
        )
    print(f"\nwithin .02 on {hits / reached:.1%} of {reached} reached")


def figure_inversion(data: pathlib.Path, number: int | None = None) -> None:
    """Inversion of `number` own samples, from the mean and in the domain."""
    n = number or 100
    decoder = load_generator(
        "mlp", weights=data / "weights" / "mnist_vae_decoder.safetensors", output="sigmoid"
    )
    graph, variables = graphnet.load(data / "weights" / "mnist_vae_encoder.json")
    trained = Model(
        lambda v, x: graph(v, x.transpose(0, 3, 1, 2))["fc21"],
        variables,
        output="embedding",
        name="encoder",
    )
    dcgan = digits(data)
    # Fitted on samples of its own: those that are inverted must be new to it.
    linear = linear_encoder(dcgan, samples=4000, key=jax.random.key(5))
    print(
        "| generator | start | domain | PSNR, median | lowest 5 % | before | radius / true | "
        "percentile, median | outside 99 % | gap |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for what, generator, encoder in (("VAE decoder", decoder, trained), ("DCGAN", dcgan, linear)):
        z = np.asarray(sample(generator, jax.random.key(9), n))
        goal = np.asarray(jax.jit(lambda g, z: g(z)["image"])(generator, z))
        for start, domain in (("mean", 0.0), ("encoder", 1e-2)):
            got = invert(
                generator, goal, start=start, encoder=encoder, domain=domain, steps=200, key=KEY
            )
            # The root mean square of the latent, against which the found radius is held.
            true = np.sqrt(np.square(z).mean(1))
            print(
                f"| {what} | {start} | {domain:g} | {np.median(got.psnr):.1f} | "
                f"{np.percentile(got.psnr, 5):.1f} | {np.median(got.start_psnr):.1f} | "
                f"{np.median(got.radius / true):.2f} | {np.median(got.percentile):.0f} | "
                f"{(got.percentile > 99).mean():.0%} | {np.median(got.domain_gap):.3f} |",
                flush=True,
            )


def figure_sweep(data: pathlib.Path, number: int | None = None) -> None:
    """All single units off at each layer, against a jitted loop that recomputes the prefix;
    `number` of units.
    """
    generator, concepts = tiles(data), labels(tiles(data))
    shapes = {
        k: s for k, s in gan_dissect.layers(generator).items() if k.endswith("relu") and len(s) == 3
    }
    shapes = {k: s for k, s in shapes.items() if "main" in k}
    kernels = [
        (k, np.shape(v["kernel"]))
        for k, v in generator.variables["params"].items()
        if "kernel" in v
    ]
    order = sorted(kernels, key=lambda kv: -kv[1][2] if "initial" not in kv[0] else -1e9)
    sides = (1, 4, 8, 16)
    # Multiplications of each layer: output places times the size of its kernel.
    work = [s * s * np.prod(shape) for s, (_, shape) in zip(sides, order, strict=True)]
    batch = 64
    z = sample(generator, KEY, batch)

    @jax.jit
    def once(generator, concepts, z, units):
        edit = Edit(units, jnp.zeros_like(units))
        outputs = taps.edit(generator, {layer: lambda x: edit_units(x, edit)})(z)
        return concepts(outputs).sum((0, 1, 2))

    print(
        "| layer | sweep, s CPU | loop, s CPU | ratio, CPU | ratio, wall | multiplies allow | "
        "share |"
    )
    print("|---|---|---|---|---|---|---|")
    for i, (layer, shape) in enumerate(shapes.items()):
        units = min(number or shape[-1], shape[-1])
        eye = np.eye(shape[-1], dtype=np.float32)[:units]
        once = jax.jit(once.__wrapped__)  # the layer is another program

        def sweep(layer=layer, units=units):
            return unit_effects(
                generator,
                layer=layer,
                units=list(range(units)),
                latents=z,
                replicates=0,
                batch_size=batch,
            ).after

        def loop(eye=eye, once=once):
            return np.stack([once(generator, concepts, z, row) for row in eye])

        # The sweep gives means and the loop sums: a mean times its pixels is a sum.
        pixels = batch * 14 * 16
        # Counts of pixels are whole numbers, so half of one is none.
        np.testing.assert_allclose(sweep() * pixels, loop(), atol=0.5)
        # The least of three: whatever else the machine does can only add.
        times = np.array([[_cost(sweep), _cost(loop)] for _ in range(3)]).min(0)
        ratio = times[1] / times[0]
        # Without the layers before the edit: what keeping their outputs can save at most.
        allowed = sum(work) / sum(work[i + 1 :])
        print(
            f"| {shape[-1]}@{shape[0]} | {times[0, 1]:.2f} | {times[1, 1]:.2f} | {ratio[1]:.2f} "
            f"| {ratio[0]:.2f} | {allowed:.2f} | {ratio[1] / allowed:.2f} |",
            flush=True,
        )


def _cost(f: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    f()
    return time.perf_counter() - wall, time.process_time() - cpu


def figure_memory(data: pathlib.Path, number: int | None = None) -> None:
    """Peak memory of a dissection at two sizes, and the larger one split over 3 hosts; `number` of
    samples.
    """
    n = number or 10_000
    if len(sys.argv) > 3:  # one size, in a process of its own
        generator, layer = tiles(data), "main.pyramid:64:relu"
        begin = time.process_time()
        whole = dissect(generator, layer=layer, samples=n, key=KEY, replicates=50)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"| {n} | {peak:.0f} | {time.process_time() - begin:.0f} |", flush=True)
        if sys.argv[3] == "split":
            # Uneven on purpose: shares of one size would hide a weight that is wrong.
            shares = [(0, n // 3), (n // 3, n // 2), (n // 2, n)]
            common = {"generator": generator, "layer": layer, "key": KEY}
            first = merge_histograms(*(histogram(**common, samples=s) for s in shares))
            second = merge_histograms(
                *(histogram(**common, samples=s, within=first) for s in shares)
            )
            limits = {layer: quantiles(first[layer], second[layer], 0.99)}
            options = {"concepts": labels(generator), "thresholds": limits, "replicates": 50}
            parts = merge_counts(*(count(**common, samples=s, **options) for s in shares))
            merged = table(layer, generator.label_names, limits[layer], parts[layer])
            for field, a, b in zip(merged._fields, merged, whole, strict=True):
                # Not close but equal: counts add up, in whatever parts.
                np.testing.assert_array_equal(a, b, err_msg=field)
            print("\nsplit over 3 hosts and merged: every array is equal")
        return
    print("| samples | peak memory, MiB | s CPU |\n|---|---|---|", flush=True)
    for size, kind in ((n // 5, "alone"), (n, "split")):
        # A process of its own for each size, for a peak never falls.
        command = [sys.executable, "-m", "benchmarks.gan_figures", "memory", str(size), kind]
        subprocess.run(command, check=True)


def espnet(data: pathlib.Path) -> Model:
    """The segmentation network of road scenes, on images in [0, 1]."""
    # The net was fed (level - mean) / std / 255, which for x in [0, 1] is (x - mean / 255) / std.
    mean, std = np.array([110.3314, 108.4092, 105.0335]), np.array([72.1252, 72.6885, 69.9026])
    names = json.loads((data / "seg" / "camvid" / "classes.json").read_text())["classes"]
    return graphnet.model(
        data / "weights" / "espnet_camvid.json",
        mean=mean / 255,
        std=std,
        bgr=True,
        output="segmentation",
        class_names=tuple(names[str(k)] for k in range(len(names))),
    )


def frame_counts(data: pathlib.Path, number: int | None = None) -> np.ndarray:
    """Returns `[3, 11]`: intersection, predicted and true pixels of each class, over CamVid
    frames.
    """
    import PIL.Image

    concepts = segmenter(espnet(data), none=11)
    read = jax.jit(lambda concepts, x: concepts({"image": x}))
    total = np.zeros((3, 11), np.int64)
    paths = sorted((data / "seg" / "camvid" / "images").glob("*.png"))[:number]
    for i in range(0, len(paths), 2):
        pair = paths[i : i + 2]
        image, mask = (
            np.stack([np.asarray(PIL.Image.open(p.parent.parent / kind / p.name)) for p in pair])
            for kind in ("images", "masks")
        )
        found = np.asarray(read(concepts, image[..., :3].astype(np.float32) / 255))
        # Class 11 is what nobody labelled: it counts neither for nor against.
        seen = (mask != 11)[..., None]
        true = mask[..., None] == np.arange(11)
        total += np.array(
            [m.sum((0, 1, 2)) for m in (found & true & seen, found & seen, true & seen)]
        )
    return total


def figure_espnet(data: pathlib.Path, number: int | None = None) -> None:
    """Mean IoU of the segmenter on `number` CamVid frames."""
    both, found, true = frame_counts(data, number)
    iou = both / (found + true - both)
    print(f"mean IoU of 11 classes: {iou.mean():.2%}; " + ", ".join(f"{x:.3f}" for x in iou))


def figure_goldens(data: pathlib.Path, number: int | None = None) -> None:
    """Largest difference of each generator from its golden, as a share of the largest output."""
    from tests.gan_dissect.test_generator import REAL, TILES, expected, real, run

    for name, net, options in REAL:
        golden = np.load(data / "golden" / f"{name}.npz")
        outputs = run(real(data, name, net, **options), golden["input"])
        want = expected(name, golden["output"])
        got = outputs["scores"] if name in TILES else outputs["image"]
        print(f"| {name} | {np.abs(got - want).max() / np.abs(want).max():.1e} |")


def main() -> None:
    """Prints the figure named by the first argument."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    known = {k.removeprefix("figure_"): v for k, v in globals().items() if k.startswith("figure_")}
    if name not in known:
        raise SystemExit(f"name a figure: {', '.join(sorted(known))}")
    number = int(sys.argv[2]) if len(sys.argv) > 2 else None
    known[name](pathlib.Path(os.environ["PERTURB_DATA"]), number)


if __name__ == "__main__":
    main()
