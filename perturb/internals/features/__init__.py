"""What does a unit look for? Pictures that a unit, a class or a direction answers most to.

>>> import jax
>>> from perturb.nets import load_model
>>> net = load_model("demo", key=jax.random.key(0))
>>> wanted = channel("conv4", 3) - 0.01 * total_variation()
>>> visualise(net, wanted, preset="maco", steps=2, key=jax.random.key(1)).images.shape
(1, 64, 64, 3)
"""

from perturb.internals.features.attribution import (
    Attribution,
    Grid,
    activation_grid,
    attribute,
)
from perturb.internals.features.images import (
    Alpha,
    Fourier,
    Latents,
    Maco,
    Parametrisation,
    Pixels,
    Pyramid,
    Raw,
)
from perturb.internals.features.inversion import Inversion, invert
from perturb.internals.features.loop import Features, evaluate, visualise
from perturb.internals.features.objectives import (
    Objective,
    activation_difference,
    alignment,
    blur,
    caricature,
    channel,
    contrast,
    direction,
    diversity,
    interpolation,
    l1,
    l2,
    layer,
    logit,
    neuron,
    picture_difference,
    probability,
    total_variation,
)
from perturb.internals.features.presets import PRESETS, Preset, preset
from perturb.internals.features.quality import Quality, path_similarity, quality
from perturb.internals.features.rules import Adam, Ascent, Rule
from perturb.internals.features.spectra import Spectrum, colours, embedded, high_share, learn
from perturb.internals.features.transforms import Crop, Jitter, Mirror, Noise, Roll, Transform

__all__ = [
    "PRESETS",
    "Adam",
    "Alpha",
    "Ascent",
    "Attribution",
    "Crop",
    "Features",
    "Fourier",
    "Grid",
    "Inversion",
    "Jitter",
    "Latents",
    "Maco",
    "Mirror",
    "Noise",
    "Objective",
    "Parametrisation",
    "Pixels",
    "Preset",
    "Pyramid",
    "Quality",
    "Raw",
    "Roll",
    "Rule",
    "Spectrum",
    "Transform",
    "activation_difference",
    "activation_grid",
    "alignment",
    "attribute",
    "blur",
    "caricature",
    "channel",
    "colours",
    "contrast",
    "direction",
    "diversity",
    "embedded",
    "evaluate",
    "high_share",
    "interpolation",
    "invert",
    "l1",
    "l2",
    "layer",
    "learn",
    "logit",
    "neuron",
    "path_similarity",
    "picture_difference",
    "preset",
    "probability",
    "quality",
    "total_variation",
    "visualise",
]
