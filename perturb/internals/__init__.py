"""What do a classifier's units do? Examples, receptive fields, ablation, vectors and names of
concepts.
"""

from perturb.internals import (
    circuits,
    explainer,
    explainer_net,
    features,
    filter_training,
    graphs,
    interpretable,
    patterns,
)
from perturb.internals.ablation import (
    Answers,
    UnitTable,
    ablate,
    balanced_accuracy,
    class_units,
    interaction,
    matched_sets,
    mean_activation,
    rank_units,
    unit_p_values,
)
from perturb.internals.account import Account, account, sentence
from perturb.internals.codes import (
    Components,
    class_components,
    components,
    layer_codes,
    merge_scatters,
    pca,
    scatter,
)
from perturb.internals.dissection import (
    Verdicts,
    dissect_pictures,
    layer_tables,
    random_network,
    summary,
    verdicts,
)
from perturb.internals.examples import (
    Examples,
    activations,
    along_range,
    merge_examples,
    patches,
    top_examples,
)
from perturb.internals.joint import joint_orders
from perturb.internals.names import Names, name_units
from perturb.internals.neighbours import (
    MapQuality,
    grid_places,
    map_quality,
    without_overlap,
)
from perturb.internals.portrait import Agreement, agreement, strongest_ties
from perturb.internals.probes import Probe, information_by_depth
from perturb.internals.receptive import box, influence, receptive_field, window_formula
from perturb.internals.repair import (
    Outcome,
    edit_out,
    fine_tune,
    judge,
    mark_directions,
    units_for,
)
from perturb.internals.sparsity import Sparsity, sparsity
from perturb.internals.tsne import Plane, tsne
from perturb.internals.vectors import ConceptVectors, concept_vectors, net2vec

__all__ = [
    "Account",
    "Agreement",
    "Answers",
    "Components",
    "ConceptVectors",
    "Examples",
    "MapQuality",
    "Names",
    "Outcome",
    "Plane",
    "Probe",
    "Sparsity",
    "UnitTable",
    "Verdicts",
    "ablate",
    "account",
    "activations",
    "agreement",
    "along_range",
    "balanced_accuracy",
    "box",
    "circuits",
    "class_components",
    "class_units",
    "components",
    "concept_vectors",
    "dissect_pictures",
    "edit_out",
    "explainer",
    "explainer_net",
    "features",
    "filter_training",
    "fine_tune",
    "graphs",
    "grid_places",
    "influence",
    "information_by_depth",
    "interaction",
    "interpretable",
    "joint_orders",
    "judge",
    "layer_codes",
    "layer_tables",
    "map_quality",
    "mark_directions",
    "matched_sets",
    "mean_activation",
    "merge_examples",
    "merge_scatters",
    "name_units",
    "net2vec",
    "patches",
    "patterns",
    "pca",
    "random_network",
    "rank_units",
    "receptive_field",
    "scatter",
    "sentence",
    "sparsity",
    "strongest_ties",
    "summary",
    "top_examples",
    "tsne",
    "unit_p_values",
    "units_for",
    "verdicts",
    "window_formula",
    "without_overlap",
]
