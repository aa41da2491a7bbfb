"""Attributions by other methods, one signature: `f(model, images, targets, *, ...) -> [B, H, W]`.

Higher values matter more; signs mean for and against. All take any JAX model and, where the method
has one, any layer by its name in `perturb.taps`. `random`, `centre` and `sobel` ignore the
network: a comparison without them says little.

>>> import numpy as np, perturb
>>> seen = perturb.Model(lambda w, x: x[:, 2:4, 2:4].sum((1, 2)), ())
>>> get("gradient")(seen, np.ones((1, 8, 8, 3)), [0]).shape
(1, 8, 8)
"""

import functools

from perturb import messages, registry
from perturb.attribution.attn_lrp import attn_lrp
from perturb.attribution.cam import cam, grad_cam
from perturb.attribution.contours import extremal_contours
from perturb.attribution.controls import centre, random, sobel
from perturb.attribution.excitation import contrastive_excitation, excitation
from perturb.attribution.expected_gradients import expected_gradients
from perturb.attribution.gradient import gradient
from perturb.attribution.guided_ig import guided_integrated_gradients
from perturb.attribution.hsic import hsic
from perturb.attribution.igos import igos
from perturb.attribution.input_gradient import input_gradient
from perturb.attribution.integrated import integrated_gradients
from perturb.attribution.legrad import legrad
from perturb.attribution.libragrad import libragrad
from perturb.attribution.linear_approx import linear_approx
from perturb.attribution.lrp import lrp
from perturb.attribution.nested import nested
from perturb.attribution.occlusion import occlusion
from perturb.attribution.relu_rules import deconvnet, guided_backprop
from perturb.attribution.rise import rise, rise_masks
from perturb.attribution.rollout import rollout
from perturb.attribution.smoothgrad import smoothgrad
from perturb.attribution.sobol_indices import sobol_indices
from perturb.attribution.xrai import xrai
from perturb.types import Function

__all__ = [
    "CONTROLS",
    "KEYED",
    "NAMES",
    "PASSES",
    "attn_lrp",
    "cam",
    "centre",
    "contrastive_excitation",
    "deconvnet",
    "excitation",
    "expected_gradients",
    "extremal_contours",
    "get",
    "grad_cam",
    "gradient",
    "guided_backprop",
    "guided_integrated_gradients",
    "hsic",
    "igos",
    "input_gradient",
    "integrated_gradients",
    "legrad",
    "libragrad",
    "linear_approx",
    "lrp",
    "nested",
    "occlusion",
    "random",
    "rise",
    "rise_masks",
    "rollout",
    "smoothgrad",
    "sobel",
    "sobol_indices",
    "xrai",
]

# One line a name: the function, or where it is (see `perturb.registry`), and its forward passes an
# image at the default settings; a gradient counts as three. A third value, True, says that a league
# table gives it a key for each picture.
_Entry = tuple[Function | str, int] | tuple[Function | str, int, bool]
_NAMED: dict[str, _Entry] = {
    "gradient": (gradient, 3),
    "input_gradient": (input_gradient, 3),
    "smoothgrad": (smoothgrad, 150, True),
    "integrated_gradients": (integrated_gradients, 150),
    "expected_gradients": (expected_gradients, 150),
    "guided_integrated_gradients": (guided_integrated_gradients, 300),
    "xrai": (xrai, 300),
    "guided_backprop": (guided_backprop, 3),
    "deconvnet": (deconvnet, 3),
    "grad_cam": (grad_cam, 3),
    "cam": (cam, 3),
    "linear_approx": (linear_approx, 3),
    "lrp": (lrp, 4),
    "attn_lrp": (attn_lrp, 4),
    "libragrad": (libragrad, 4),
    "legrad": (legrad, 12),
    "rollout": (rollout, 1),
    "excitation": (excitation, 4),
    "contrastive_excitation": (contrastive_excitation, 8),
    "occlusion": (occlusion, 225),
    "rise": (rise, 2000),
    "sobol_indices": (sobol_indices, 2112),
    "hsic": (hsic, 750),
    "igos": (igos, 3800, True),
    "extremal_contours": (extremal_contours, 310),
    "nested": (nested, 640, True),
    "random": (random, 0, True),
    "centre": (centre, 0),
    "sobel": (sobel, 0),
}
NAMES = tuple(_NAMED)
# Names with a question, for tables in which our map stands several times.
_ASKED: dict[str, _Entry] = {
    f"nested:{question}": (functools.partial(nested, question=question), passes, True)
    for question, passes in (("enough", 380), ("needed", 380), ("both", 640))
}
_EVERY = _NAMED | _ASKED
PASSES = {name: entry[1] for name, entry in _EVERY.items()}
KEYED = tuple(name for name, entry in _EVERY.items() if entry[2:] == (True,))
# A league table always has these rows: a method that does not beat them shows nothing.
CONTROLS = ("random", "centre", "sobel")


def get(name: str) -> Function:
    """Returns the attribution of that name.

    Args:
      name: one of the names in `perturb.attribution`, such as "grad_cam"; "nested:both",
        "nested:enough" and "nested:needed" are `nested` with that question.
    Raises:
      ValueError: if the name is unknown.
    """
    if name not in _EVERY:
        raise messages.one_of("attribution", name, tuple(_EVERY))
    found: Function = registry.resolve(_EVERY[name][0])
    return found
