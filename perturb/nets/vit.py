"""The vision transformer ViT-B/16 and the small one of the embedded world,
`Dosovitskiy et al. 2020 <https://arxiv.org/abs/2010.11929>`_, table 1.

Layers carry torchvision's names; timm's files are read too. Files hold the projections to queries,
keys and values as one matrix; here it is one layer too, whose output is split.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from perturb import weights as weights_lib
from perturb.geometry import short_side, squash
from perturb.nets._net import Net
from perturb.types import Record

__all__ = ["DEMO", "ViT", "demo_vit", "vit_b_16"]


class Attention(nn.Module):
    """Multi-head self-attention of tokens `[B, T, D]`."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, tokens, width = x.shape
        together = nn.Dense(3 * width, name="in_proj")(x)
        parts = (batch, tokens, self.heads, width // self.heads)
        # In the file's order: queries, keys, values, and the heads within each.
        q, k, v = (part.reshape(parts) for part in jnp.split(together, 3, axis=-1))
        mixed = nn.dot_product_attention(q, k, v).reshape(x.shape)
        return nn.Dense(width, name="out_proj")(mixed)


class Block(nn.Module):
    """Attention and two dense layers, each after a layer norm and beside a shortcut."""

    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + Attention(self.heads, name="self_attention")(_norm("ln_1")(x))
        y = nn.Dense(self.hidden, name="mlp.0")(_norm("ln_2")(x))
        # torch's GELU is the exact one. mlp.1 and mlp.2 are that and the dropout.
        return x + nn.Dense(x.shape[-1], name="mlp.3")(jax.nn.gelu(y, approximate=False))


class ViT(nn.Module):
    """Images `[B, H, W, 3]`, normalised, of the size it was trained on, to logits `[B, classes]`.

    Attributes:
      classes: number of classes.
      patch: side of a patch, px.
      width: of a token.
      heads: in each layer.
      hidden: units between the two dense layers.
      layers: number of blocks.
    """

    classes: int = 1000
    patch: int = 16
    width: int = 768
    heads: int = 12
    hidden: int = 3072
    layers: int = 12

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        sides = (self.patch, self.patch)
        x = nn.Conv(self.width, sides, sides, padding="VALID", name="conv_proj")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        # The class token comes first, as the position embeddings of the file have it.
        first = self.param("class_token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, self.width)), x], axis=1)
        place = nn.initializers.normal(0.02)
        x = x + self.param("pos_embedding", place, (1, *x.shape[1:]))
        for i in range(self.layers):
            name = f"encoder.layers.encoder_layer_{i}"
            x = Block(self.heads, self.hidden, name=name)(x)
        return nn.Dense(self.classes, name="heads.head")(_norm("encoder.ln")(x)[:, 0])


def _norm(name: str) -> nn.LayerNorm:
    # Two-pass variance, as torch has it.
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name)


def _slots(template: weights_lib.Tensors, separator: str) -> dict[str, weights_lib.Slot]:
    slots = weights_lib.slots(template, separator=separator)
    # torch has one matrix and one vector here, `in_proj_weight`, joined by an underscore.
    ours = {r"\.in_proj\.": ".in_proj_", r"^\.class": "class", r"^\.pos": "encoder.pos"}
    return weights_lib.rename(slots, ours)


# timm's names, part by part.
_TIMM = {
    r"^blocks\.(\d+)\.": r"encoder.layers.encoder_layer_\1.",
    r"\.norm([12])\.": r".ln_\1.",
    r"\.attn\.qkv\.": ".self_attention.in_proj_",
    r"\.attn\.proj\.": ".self_attention.out_proj.",
    r"\.mlp\.fc1\.": ".mlp.0.",
    r"\.mlp\.fc2\.": ".mlp.3.",
    r"^norm\.": "encoder.ln.",
    r"^head\.": "heads.head.",
    r"^patch_embed\.proj\.": "conv_proj.",
    r"^cls_token$": "class_token",
    r"^pos_embed$": "encoder.pos_embedding",
}


def _spell(tensors: weights_lib.Tensors) -> Record:
    return weights_lib.rename(tensors, _TIMM)


def _module(tensors: weights_lib.Tensors) -> ViT:
    shows = (("heads.head.weight", 0), ("heads.head.bias", 0))
    return ViT(weights_lib.width(tensors, *shows, default=1000))


vit_b_16 = Net(
    name="vit_b_16",
    module=_module,
    geometry=short_side(256).crop(224),
    slots=_slots,
    spell=_spell,
)

# The small net of the embedded picture world, for pictures of 64 px: 64 patches and a class token.
DEMO = ViT(classes=10, patch=8, width=64, heads=4, hidden=128, layers=4)


def _small(tensors: weights_lib.Tensors) -> ViT:
    classes = weights_lib.width(tensors, ("heads.head.bias", 0), default=DEMO.classes)
    return dataclasses.replace(DEMO, classes=classes)


demo_vit = Net(
    name="demo_vit",
    module=_small,
    geometry=squash(64),
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
    slots=_slots,
    spell=_spell,
    hint="; perturb.demo('demo_vit') brings the embedded ones",
)
