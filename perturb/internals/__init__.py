"""What do a classifier's own units do? Examples, receptive fields, ablation, vectors and names of concepts."""

from perturb.internals import circuits, explainer, features, graphs, interpretable, patterns
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
)
from perturb.internals.account import Account, account, sentence
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
from perturb.internals.names import Names, name_units
from perturb.internals.receptive import box, influence, receptive_field, window_formula
from perturb.internals.sparsity import Sparsity, sparsity
from perturb.internals.vectors import ConceptVectors, concept_vectors, net2vec

__all__ = [
    "Account",
    "Answers",
    "ConceptVectors",
    "Examples",
    "Names",
    "Sparsity",
    "UnitTable",
    "Verdicts",
    "ablate",
    "account",
    "activations",
    "along_range",
    "balanced_accuracy",
    "box",
    "circuits",
    "class_units",
    "concept_vectors",
    "dissect_pictures",
    "explainer",
    "features",
    "graphs",
    "influence",
    "interaction",
    "interpretable",
    "layer_tables",
    "matched_sets",
    "mean_activation",
    "merge_examples",
    "name_units",
    "net2vec",
    "patches",
    "patterns",
    "random_network",
    "rank_units",
    "receptive_field",
    "sentence",
    "sparsity",
    "summary",
    "top_examples",
    "verdicts",
    "window_formula",
]
