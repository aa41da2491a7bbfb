"""The documented import path of `perturb.units.quantiles`."""

from perturb.units.quantiles import (
    Histogram,
    histogram,
    merge_histograms,
    quantiles,
    round_down,
    rounded_quantiles,
)

__all__ = [
    "Histogram",
    "histogram",
    "merge_histograms",
    "quantiles",
    "round_down",
    "rounded_quantiles",
]
