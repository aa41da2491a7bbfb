"""What do a classifier's own units do? Examples, receptive fields, ablation, vectors and names of concepts."""

from perturb.internals import circuits, explainer, graphs, interpretable, patterns
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
from perturb.internals.examples import (
    Examples,
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
    "Answers",
    "ConceptVectors",
    "Examples",
    "Names",
    "Sparsity",
    "UnitTable",
    "ablate",
    "along_range",
    "balanced_accuracy",
    "box",
    "circuits",
    "class_units",
    "concept_vectors",
    "explainer",
    "graphs",
    "influence",
    "interaction",
    "interpretable",
    "matched_sets",
    "mean_activation",
    "merge_examples",
    "name_units",
    "net2vec",
    "patches",
    "patterns",
    "rank_units",
    "receptive_field",
    "sparsity",
    "top_examples",
    "window_formula",
]
