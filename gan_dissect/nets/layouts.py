"""The layouts that projects save their generators in, recognised by their names and turned into
those of the nets here.

Prefixes of wrappers (`module.`, `_orig_mod.`, `generator.`, `g_ema.`, the key of a checkpoint) are
stripped, and other networks in the same file are ignored. Layouts were read off the projects'
classes with random weights; see `tests/oracles`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from perturb.types import Record

__all__ = ["Fitted", "fit", "resembles"]

Tensors = dict[str, np.ndarray]
# Resolution from which a StyleGAN in genforce's code doubles and convolves in one step.
_FUSED_FROM = 128
# How deep a file is searched: wrappers nest, as in state_dict.module.generator, but not for ever.
_DEPTH = 6
# Latents that a mean style is taken over, as many as in StyleGAN2's projector.
_DRAWS = 10_000


class Fitted(NamedTuple):
    """Weights under the names of a net of this library.

    Attributes:
      net: its name, for `load_generator`.
      project: whose layout the file has.
      prefix: what stood before the names.
      tensors: `{name: array}` as the net reads them.
      notes: sentences on what was done beyond renaming.
    """

    net: str
    project: str
    prefix: str
    tensors: Tensors
    notes: tuple[str, ...] = ()


class _Layout(NamedTuple):
    net: str
    project: str
    signs: tuple[str, ...]  # patterns that must each match a name
    convert: Callable[[Tensors, Tensors], tuple[Tensors, tuple[str, ...]]]
    check: Callable[[Tensors], bool] = lambda tensors: True


def fit(tensors: Record, *, net: str | None = None) -> Fitted | None:
    """Returns the weights of the one generator in a file, or None if no layout is known.

    Args:
      tensors: `{name: array}`, of all networks in the file.
      net: only layouts of this net; None looks for all.
    Raises:
      ValueError: if the file holds several generators, or one that cannot be drawn with.

    >>> one = {"module.main.0.weight": np.zeros((8, 4, 4, 4))}
    >>> one["module.main.1.weight"] = np.zeros((4, 3, 4, 4))
    >>> fit(one).net, fit(one).prefix
    ('dcgan', 'module.')
    """
    found = {
        p: (layout, inner) for p, layout, inner in _search(tensors) if net in (None, layout.net)
    }
    # An average over training beside the generator itself is the better one.
    averaged = {p: f for p, f in found.items() if "ema" in p.lower()}
    found = averaged or found
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(
            "the file holds several generators, choose one with --part: "
            + ", ".join(prefix.rstrip(".") or "(top)" for prefix in list(found)[:6])
        )
    ((prefix, (layout, inner)),) = found.items()
    # What a checkpoint keeps beside the networks, such as the mean style.
    beside = {n: np.asarray(t) for n, t in tensors.items() if "." not in n}
    made, notes = layout.convert({n: np.asarray(t) for n, t in inner.items()}, beside)
    return Fitted(layout.net, layout.project, prefix, made, notes)


def resembles(tensors: Record) -> str:
    """Returns what a file that no layout fits looks like, in a few words."""
    names = [n.lower() for n in tensors]
    for pattern, words in _ALIKE.items():
        if any(re.search(pattern, n) for n in names):
            return words
    return f"no generator known here; its tensors are called {', '.join(list(tensors)[:3])}"


_ALIKE = {
    r"synthesis\.input\.(freqs|phases)": "a StyleGAN3 without all of its layers",
    r"^(.*\.)?(encoder|decoder)\..*(conv_in|mid_block)": "an autoencoder of a diffusion model",
    r"discriminator|^d\.|netd": "a discriminator",
    r"lora|unet|time_embed": "a diffusion model",
    r"^(.*\.)?(fc|classifier)\.(weight|\d+\.weight)$": "a classifier: see perturb.load_model",
}


def _search(tensors: Record) -> Iterator[tuple[str, _Layout, Record]]:
    """Yields each place in the file where a layout begins, from the outside in."""
    groups = [("", tensors)]
    for _ in range(_DEPTH):
        deeper: list[tuple[str, Record]] = []
        for prefix, inner in groups:
            layout = next((x for x in _LAYOUTS if _signed(x, inner)), None)
            if layout is not None:
                # Not searched further: a part of a generator may look like another layout
                # by itself.
                yield prefix, layout, inner
                continue
            heads: dict[str, Record] = {}
            for name, tensor in inner.items():
                head, dot, rest = name.partition(".")
                if dot:
                    heads.setdefault(head, {})[rest] = tensor
            deeper += [(f"{prefix}{head}.", group) for head, group in heads.items()]
        groups = deeper


def _signed(layout: _Layout, tensors: Record) -> bool:
    found = all(any(re.fullmatch(sign, n) for n in tensors) for sign in layout.signs)
    return found and layout.check(tensors)


def _transposed(tensors: Record) -> bool:
    """Whether convolutions follow each other as transposed ones do, in by out: a discriminator's do
    not.
    """
    kernels = {n: np.shape(t) for n, t in tensors.items() if np.ndim(t) == 4}
    order = sorted(kernels, key=lambda n: [int(k) for k in re.findall(r"\d+", n)])
    shapes = [kernels[n] for n in order]
    return len(shapes) > 1 and all(a[1] == b[0] for a, b in itertools.pairwise(shapes))


def _same(tensors: Tensors, beside: Tensors) -> tuple[Tensors, tuple[str, ...]]:
    return tensors, ()


def _sequential(tensors: Tensors, beside: Tensors) -> tuple[Tensors, tuple[str, ...]]:
    """A bare `nn.Sequential`: `0.weight` is `main.0.weight` of PyTorch's example."""
    return {f"main.{name}": t for name, t in tensors.items()}, ()


def _pggan(tensors: Tensors, beside: Tensors) -> tuple[Tensors, tuple[str, ...]]:
    """genforce's and InterFaceGAN's: layers from 0, all the outputs of training, doubling in one
    step.
    """
    made: Tensors = {}
    plain = {
        re.sub(r"\.(conv|wscale)\.", ".", n): t for n, t in tensors.items() if n.startswith("layer")
    }
    if any(n.startswith("layer0.") and t.ndim == 4 and t.shape[2] != 4 for n, t in plain.items()):
        raise ValueError("a progressively grown generator with classes or another first layer")
    # Whether the doubling layers are transposed shows where a layer has other widths in and out.
    turned = any(
        t.ndim == 4 and t.shape[1] == len(plain[n.replace("weight", "bias")]) != t.shape[0]
        for n, t in plain.items()
        if n.endswith(".weight") and f"{n.split('.')[0]}.conv.weight" not in tensors
    )
    for name, t in plain.items():
        layer, kind = name.split(".")
        number = int(layer.removeprefix("layer"))
        if kind == "bias":
            made[f"layer{number + 1}.wscale.b"] = t
            continue
        if f"{layer}.conv.weight" not in tensors and f"{layer}.wscale.bias" in tensors:
            t = t.transpose(3, 2, 0, 1)[:, :, ::-1, ::-1]  # InterFaceGAN's: kh, kw, I, O
        elif turned and number and number % 2 == 0:
            t = t.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
        made[f"layer{number + 1}.conv.weight"] = t
    # Two layers a resolution. The outputs of the smaller ones served training only.
    last = max(int(n.split(".")[0].removeprefix("layer")) for n in plain) // 2
    side = 4 * 2**last
    for kind, to in (("weight", "conv.weight"), ("bias", "wscale.b")):
        for at in ("", "conv.", "wscale."):
            if f"output{last}.{at}{kind}" in tensors:
                made[f"output_{side}x{side}.{to}"] = tensors[f"output{last}.{at}{kind}"]
    return made, ()


def _stylegan_genforce(tensors: Tensors, beside: Tensors) -> tuple[Tensors, tuple[str, ...]]:
    if "mapping.label_weight" in tensors:
        raise ValueError("a StyleGAN with classes, for which there is no net here")
    made: Tensors = {}
    for name, t in tensors.items():
        part, _, rest = name.partition(".")
        layer, _, kind = rest.partition(".")
        if part == "mapping":
            made[f"mapping.{layer}.{'linear.weight' if kind == 'weight' else 'wscale.bias'}"] = t
        elif part == "truncation":
            made[name] = t
        elif layer.startswith("output"):
            made[f"synthesis.{layer}.{'conv.weight' if kind == 'weight' else 'bias'}"] = t
        elif layer.startswith("layer"):
            number = int(layer.removeprefix("layer"))
            at = f"synthesis.{layer}"
            if kind == "const":
                made[f"{at}.first_layer"] = t
            elif kind == "weight":
                # Enlarging and convolving in one step is a transposed convolution, whose kernel
                # runs the other way.
                fused = number % 2 == 0 and 4 * 2 ** (number // 2) >= _FUSED_FROM
                made[f"{at}.conv.weight"] = t[:, :, ::-1, ::-1] if fused else t
            elif kind == "bias":
                made[f"{at}.epilogue.bias"] = t
            elif kind.startswith("style."):
                to = "linear.weight" if kind.endswith("weight") else "wscale.bias"
                made[f"{at}.epilogue.style_mod.dense.{to}"] = t
            elif kind.startswith("apply_noise."):
                made[f"{at}.epilogue.{kind}"] = t
    return made, ()


def _stylegan2_genforce(tensors: Tensors, beside: Tensors) -> tuple[Tensors, tuple[str, ...]]:
    if "mapping.label_weight" in tensors:
        raise ValueError("genforce's StyleGAN2 with classes, for which there is no net here")
    made: Tensors = {}
    for name, t in tensors.items():
        part, _, rest = name.partition(".")
        layer, _, kind = rest.partition(".")
        if part == "mapping":
            made[f"mapping.{layer.replace('dense', 'fc')}.{kind}"] = t
        elif name == "truncation.w_avg":
            made["mapping.w_avg"] = t
        elif name == "synthesis.early_layer.const":
            made["synthesis.b4.const"] = t[0]
        elif match := re.fullmatch(r"(layer|output)(\d+)", layer):
            number = int(match[2])
            if match[1] == "output":
                to = f"synthesis.b{4 * 2**number}.torgb"
            else:
                to = f"synthesis.b{4 * 2 ** ((number + 1) // 2)}.conv{int(number % 2 == 0)}"
            # The layers that double are transposed convolutions: their kernels run the other way.
            if kind == "weight" and match[1] == "layer" and number % 2:
                t = t[:, :, ::-1, ::-1]
            if kind in ("weight", "bias"):
                made[f"{to}.{kind}"] = t
            elif kind == "style.weight":
                made[f"{to}.affine.weight"] = t
            elif kind == "style.bias":
                # genforce adds the 1 at run time; here it is in the bias, as in the release.
                made[f"{to}.affine.bias"] = t + 1
            elif kind == "noise_strength":
                made[f"{to}.noise_strength"] = t.reshape(())
            elif kind == "noise":
                made[f"{to}.noise_const"] = t[0, 0]
    return made, ()


def _stylegan2_rosinality(tensors: Tensors, beside: Tensors) -> tuple[Tensors, tuple[str, ...]]:
    made: Tensors = {"synthesis.b4.const": tensors["input.input"][0]}
    notes: tuple[str, ...] = ()

    def place(kind: str, number: int) -> str:
        if kind == "convs":
            return f"synthesis.b{8 * 2 ** (number // 2)}.conv{number % 2}"
        return f"synthesis.b{8 * 2**number}.torgb"

    for name, t in tensors.items():
        if match := re.fullmatch(r"style\.(\d+)\.(weight|bias)", name):
            # Number 0 of `style` normalises the latent, and has no weights.
            made[f"mapping.fc{int(match[1]) - 1}.{match[2]}"] = t
            continue
        if match := re.fullmatch(r"noises\.noise_(\d+)", name):
            number = int(match[1])
            made[
                f"{place('convs', number - 1) if number else 'synthesis.b4.conv1'}.noise_const"
            ] = t[0, 0]
            continue
        match = re.fullmatch(r"(conv1|to_rgb1|(convs|to_rgbs)\.(\d+))\.(.+)", name)
        if match is None:
            continue
        first = "synthesis.b4.conv1" if match[1] == "conv1" else "synthesis.b4.torgb"
        to, kind = (place(match[2], int(match[3])) if match[2] else first), match[4]
        if kind == "conv.weight":
            made[f"{to}.weight"] = t[0]
        elif kind.startswith("conv.modulation."):
            made[f"{to}.affine.{kind.rpartition('.')[2]}"] = t
        elif kind == "noise.weight":
            made[f"{to}.noise_strength"] = t.reshape(())
        elif kind in ("bias", "activate.bias"):
            made[f"{to}.bias"] = t.ravel()
    sides = {n: int(n.split(".")[1][1:]) for n in made if n.endswith(".noise_strength")}
    for name, side in sides.items():
        # Files of before the noise was stored: it was drawn anew for every picture.
        made.setdefault(name.replace("strength", "const"), np.zeros((side, side), np.float32))
    mean = beside.get("latent_avg", tensors.get("latent_avg"))
    if mean is None:
        mean = _mean_style(made)
        notes = (f"the file has no latent_avg: it is the mean style of {_DRAWS} latents",)
    made["mapping.w_avg"] = np.asarray(mean).ravel()
    return made, notes


def _biggan(tensors: Tensors, beside: Tensors) -> tuple[Tensors, tuple[str, ...]]:
    """BigGAN-PyTorch's: spectral norms divided out as its `eval` does, one power iteration
    from the stored vector.
    """
    made: Tensors = {}
    for name, t in tensors.items():
        if re.search(r"\.(u|sv)\d+$", name):
            continue
        u = tensors.get(re.sub(r"weight$", "u0", name)) if name.endswith("weight") else None
        if u is not None:
            rows = np.asarray(t, np.float64).reshape(len(t), -1)
            v = np.asarray(u, np.float64).ravel() @ rows
            t = (t / np.linalg.norm(rows @ (v / np.linalg.norm(v)))).astype(np.float32)
        # Norms of several devices, and those that keep their own statistics, are one level further
        # in.
        made[re.sub(r"\.bn\.(stored|running)_(mean|var)$", r".stored_\2", name)] = t
    made = {
        n: t
        for n, t in made.items()
        if not n.endswith((".bn.num_batches_tracked", "accumulation_counter"))
    }
    for name in [n for n in made if n.endswith(".gamma")]:
        # A number without an axis in the file.
        made[name] = made[name].reshape(1)
    notes: tuple[str, ...] = ()
    if any(re.search(r"bn1\.bn\.running_mean$", n) for n in tensors):
        notes = (
            "its norms multiply by their gain, as in training; that code's eval() adds the gain of "
            "norms synchronised over devices",
        )
    if "shared.weight" not in made:
        # A table for each norm is a linear function of the class.
        tables = [n for n in made if re.search(r"\.bn\d\.(gain|bias)\.weight$", n)]
        made["shared.weight"] = np.eye(len(made[tables[0]]), dtype=np.float32)
        made |= {n: made[n].T for n in tables}
        notes = (*notes, "the norms' tables of classes are written as products")
    return made, notes


def _biggan_deep(tensors: Tensors, beside: Tensors) -> tuple[Tensors, tuple[str, ...]]:
    """BigGAN-PyTorch's deep one: layers numbered through, attention a layer of its own.

    Of its two versions, one conditions on z and the class and draws 128 channels, of which three
    are shown; the other on the class and z, and draws three.
    """
    if "shared.weight" not in tensors:
        raise ValueError("a BigGAN-deep without a shared table of classes, for which there is none")
    plain, notes = _biggan(tensors, beside)
    blocks = sum(re.fullmatch(r"blocks\.\d+\.0\.conv4\.weight", n) is not None for n in plain)
    if blocks % 2:
        raise ValueError(
            f"a BigGAN-deep of {blocks} blocks: those of two blocks a resolution, G_depth=2, are "
            "known"
        )
    # Attention follows a block inside its list; here it is a layer, and has a number.
    attended = [int(n.split(".")[1]) for n in plain if re.fullmatch(r"blocks\.\d+\.1\.gamma", n)]
    made: Tensors = {"embeddings.weight": plain["shared.weight"].T}
    embedding = plain["shared.weight"].shape[1]
    class_first = len(plain["output_layer.2.weight"]) <= 4  # of an image
    for name, t in plain.items():
        if class_first and re.search(r"(^linear|\.(gain|bias))\.weight$", name):
            t = np.roll(t, -embedding, axis=1)
        if name.startswith("linear."):
            # Its values are laid out with the channels first, and here with the channels last.
            rows = t.reshape(-1, 16, *t.shape[1:]).swapaxes(0, 1)
            made[f"generator.gen_z.{name[7:]}"] = rows.reshape(t.shape)
        elif match := re.fullmatch(r"blocks\.(\d+)\.([01])\.(.+)", name):
            number, rest = int(match[1]), match[3]
            at = number + sum(k < number for k in attended) + int(match[2])
            made[f"generator.layers.{at}.{_deep(rest)}"] = t
        elif name.startswith("output_layer.0."):
            kind = name[len("output_layer.0.") :].replace("gain", "weight")
            made[f"generator.bn.{_statistic(kind)}"] = t
        elif name.startswith("output_layer.2."):
            made[f"generator.conv_to_rgb.{name[len('output_layer.2.') :]}"] = t
    for name in made:
        if name.endswith(".running_means"):
            made[name] = made[name][None]
        elif name.endswith(".running_vars"):
            # Read with an epsilon of 1e-4; theirs is 1e-5 unless trained with another.
            made[name] = made[name][None] + np.float32(1e-5 - 1e-4)
    return made, notes


def _deep(name: str) -> str:
    """A tensor of a block or of its attention, under pytorch-pretrained-biggan's name."""
    if match := re.fullmatch(r"conv(\d)\.(.+)", name):
        return f"conv_{int(match[1]) - 1}.{match[2]}"
    if match := re.fullmatch(r"bn(\d)\.(.+)", name):
        kind = match[2].replace("gain.", "scale.").replace("bias.", "offset.")
        return f"bn_{int(match[1]) - 1}.{_statistic(kind)}"
    parts = {"theta": "theta", "phi": "phi", "g": "g", "o": "o_conv"}
    part, dot, rest = name.partition(".")
    return f"snconv1x1_{parts[part]}.{rest}" if dot else name


def _statistic(kind: str) -> str:
    return {"stored_mean": "running_means", "stored_var": "running_vars"}.get(kind, kind)


def _mean_style(made: Tensors) -> np.ndarray:
    """The mapping of StyleGAN2 written out for the mean over many latents."""
    x = np.random.default_rng(0).standard_normal((_DRAWS, made["mapping.fc0.weight"].shape[1]))
    x /= np.sqrt(np.square(x).mean(1, keepdims=True) + 1e-8)
    for k in range(sum(re.fullmatch(r"mapping\.fc\d+\.weight", n) is not None for n in made)):
        weight, bias = made[f"mapping.fc{k}.weight"], made[f"mapping.fc{k}.bias"]
        x = x @ weight.T.astype(np.float64) * (0.01 / np.sqrt(weight.shape[1])) + 0.01 * bias
        x = np.where(x > 0, x, 0.2 * x) * np.sqrt(2)
    found: np.ndarray = x.mean(0).astype(np.float32)
    return found


# The first that fits is taken: those with names of their own stand before those with plain numbers.
_LAYOUTS = (
    _Layout(
        "stylegan2",
        "rosinality's StyleGAN2",
        (r"input\.input", r"conv1\.conv\.modulation\.weight", r"style\.1\.weight"),
        _stylegan2_rosinality,
    ),
    _Layout(
        "stylegan2",
        "genforce's StyleGAN2",
        (r"synthesis\.early_layer\.const", r"mapping\.dense0\.weight"),
        _stylegan2_genforce,
    ),
    _Layout(
        "stylegan3",
        "StyleGAN3",
        (r"synthesis\.input\.freqs", r"synthesis\.L0_\d+_\d+\.weight", r"mapping\.fc0\.weight"),
        _same,
    ),
    _Layout(
        "stylegan2",
        "StyleGAN2-ADA",
        (r"synthesis\.b4\.const", r"mapping\.fc0\.weight"),
        _same,
    ),
    _Layout(
        "stylegan",
        "genforce's StyleGAN",
        (r"synthesis\.layer0\.const", r"mapping\.dense0\.weight"),
        _stylegan_genforce,
    ),
    _Layout(
        "stylegan",
        "InterFaceGAN's StyleGAN",
        (r"synthesis\.layer0\.first_layer", r"mapping\.dense0\.linear\.weight"),
        _same,
    ),
    _Layout(
        "pggan", "GAN dissection's ProGAN", (r"layer1\.conv\.weight", r"layer1\.wscale\.b"), _same
    ),
    _Layout(
        "pggan", "InterFaceGAN's PGGAN", (r"layer0\.conv\.weight", r"output0\.wscale\.bias"), _pggan
    ),
    _Layout(
        "pggan", "genforce's PGGAN", (r"layer0\.weight", r"layer0\.bias", r"output0\.bias"), _pggan
    ),
    _Layout(
        "biggan_deep",
        "BigGAN-deep",
        (r"embeddings\.weight", r"generator\.gen_z\.weight(_orig)?"),
        _same,
    ),
    _Layout(
        "biggan",
        "BigGAN-PyTorch",
        (r"linear\.weight", r"blocks\.0\.0\.conv_sc\.weight", r"blocks\.0\.0\.bn1\.gain\.weight"),
        _biggan,
        lambda tensors: not any(n.endswith(".conv4.weight") for n in tensors),
    ),
    _Layout(
        "biggan_deep",
        "BigGAN-PyTorch's BigGAN-deep",
        (r"linear\.weight", r"blocks\.0\.0\.conv4\.weight", r"blocks\.0\.0\.bn1\.gain\.weight"),
        _biggan_deep,
    ),
    _Layout("tile_dcgan", "GameGAN's", (r"main\.initial[.:].*convt[.:]weight",), _same),
    _Layout(
        "pytorch_gan", "PyTorch-GAN's DCGAN", (r"l1\.0\.weight", r"conv_blocks\.\d+\.weight"), _same
    ),
    _Layout(
        "dcgan", "PyTorch's DCGAN", (r"(main\.\d+|gen\.\d+\.\d+)\.weight",), _same, _transposed
    ),
    _Layout(
        "dcgan", "a Sequential like PyTorch's DCGAN", (r"0\.weight",), _sequential, _transposed
    ),
)
