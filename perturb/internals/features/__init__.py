"""What does a unit look for? Pictures that a unit, a class or a direction answers most to.

>>> import jax
>>> from perturb.nets import load_model
>>> net = load_model("demo", key=jax.random.key(0))
>>> wanted = channel("conv4", 3) - 0.01 * total_variation()
>>> visualise(net, wanted, preset="maco", steps=2, key=jax.random.key(1)).images.shape
(1, 64, 64, 3)
"""

from perturb.internals.features.atlas import Atlas, Sampled, atlas, sample
from perturb.internals.features.attribution import (
    Attribution,
    Grid,
    activation_grid,
    attribute,
    attribute_between,
)
from perturb.internals.features.composites import (
    Dictionary,
    Groups,
    caricatures,
    groups,
    semantic_dictionary,
)
from perturb.internals.features.deep import Deep
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
from perturb.internals.features.inversion import Inversion, feature_error, invert
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
from perturb.internals.features.paths import path_similarity, paths, routes
from perturb.internals.features.presets import PRESETS, Preset, preset
from perturb.internals.features.quality import Quality, quality
from perturb.internals.features.restoring import Restored, restore
from perturb.internals.features.rules import Adam, Ascent, Rule
from perturb.internals.features.spectra import Spectrum, colours, embedded, high_share, learn
from perturb.internals.features.transforms import Crop, Jitter, Mirror, Noise, Roll, Transform
from perturb.internals.features.trials import (
    Choices,
    Transfer,
    seed_agreement,
    transfer,
    two_choices,
)

__all__ = [
    "PRESETS",
    "Adam",
    "Alpha",
    "Ascent",
    "Atlas",
    "Attribution",
    "Choices",
    "Crop",
    "Deep",
    "Dictionary",
    "Features",
    "Fourier",
    "Grid",
    "Groups",
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
    "Restored",
    "Roll",
    "Rule",
    "Sampled",
    "Spectrum",
    "Transfer",
    "Transform",
    "activation_difference",
    "activation_grid",
    "alignment",
    "atlas",
    "attribute",
    "attribute_between",
    "blur",
    "caricature",
    "caricatures",
    "channel",
    "colours",
    "contrast",
    "direction",
    "diversity",
    "embedded",
    "evaluate",
    "feature_error",
    "groups",
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
    "paths",
    "picture_difference",
    "preset",
    "probability",
    "quality",
    "restore",
    "routes",
    "sample",
    "seed_agreement",
    "semantic_dictionary",
    "total_variation",
    "transfer",
    "two_choices",
    "visualise",
]
