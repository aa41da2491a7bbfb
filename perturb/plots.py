"""Curves and bars of results, by matplotlib (extra `plots`), in the colours of the pages.

Every function returns a figure of its own, which a notebook's cell shows and `savefig` writes;
pyplot, and with it global state, is not touched.

>>> PALETTE[0]
'#e39a1c'
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["PALETTE", "areas", "bars", "curves", "effects"]

# Amber of the pages first, then colours of Okabe and Ito's set, which all kinds of colour vision
# tell apart; each differs from its neighbours in lightness too.
PALETTE = ("#e39a1c", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#5d6672")
_DASHES = ("-", "--", "-.", ":")
_INK, _SOFT, _BAND = "#1d2127", "#5d6672", "#d9d5cc"


def curves(found: Mapping[str, Any], *, x: str = "share of the picture", y: str = "score") -> Any:
    """Draws the mean curve of each method, with its area in the legend.

    Args:
      found: `{name: Curve}` of `perturb.metrics.insertion` or `deletion`, or `{name: [B, n + 1]}`.
      x: what goes from 0 to 1.
      y: what is measured.
    Raises:
      ImportError: matplotlib is not installed.
      ValueError: there is nothing to draw.
    """
    if not found:
        raise ValueError("curves must be at least one, got none")
    figure, axes = _figure()
    for n, (name, one) in enumerate(found.items()):
        scores = np.atleast_2d(np.asarray(getattr(one, "scores", one), np.float64))
        mean = np.nanmean(scores, 0)
        at = np.linspace(0, 1, len(mean))
        area = float(np.trapezoid(mean, at))
        style = {"color": PALETTE[n % len(PALETTE)], "linestyle": _DASHES[n % len(_DASHES)]}
        axes.plot(at, mean, label=f"{name} ({area:.3g})", linewidth=2, **style)
    axes.legend(frameon=False)
    return _labelled(figure, axes, x, y)


def areas(result: Any) -> Any:
    """Draws what the regions of each image keep, by their area: the target's probability, or the
    score where it has none.

    Args:
      result: of `perturb.extremal` or `meaningful`, a `perturb.Result`.
    Raises:
      ImportError: matplotlib is not installed.
    """
    figure, axes = _figure()
    at = np.asarray(result.achieved_area)
    kept, whole = np.asarray(result.probability_binary), np.asarray(result.probability_original)
    name = "probability"
    if not np.isfinite(kept).any():
        kept, whole = np.asarray(result.score_binary), np.asarray(result.score_original)
        name = "score"
    for b in range(len(at)):
        style = {"color": PALETTE[b % len(PALETTE)], "linestyle": _DASHES[b % len(_DASHES)]}
        order = np.argsort(at[b])
        axes.plot(100 * at[b][order], kept[b][order], marker="o", label=f"image {b}", **style)
        axes.axhline(float(whole[b]), color=style["color"], linewidth=0.8, alpha=0.5)
    if len(at) <= len(PALETTE):
        axes.legend(frameon=False)
    return _labelled(figure, axes, "area of the region, % of the picture", name)


def bars(
    names: Sequence[str],
    values: Any,
    *,
    low: Any = None,
    high: Any = None,
    band: tuple[Any, Any] | None = None,
    x: str = "",
) -> Any:
    """Draws a bar a name, with its interval and, behind it, the band that chance gives.

    Args:
      names: of the bars, from top to bottom.
      values: `[N]`.
      low: `[N]` lower ends of the intervals, or None.
      high: `[N]` upper ends, or None.
      band: `([N], [N])` from where to where chance reaches, or None.
      x: what is measured.
    Raises:
      ImportError: matplotlib is not installed.
      ValueError: there are not as many values as names.
    """
    values = np.asarray(values, np.float64)
    if values.shape != (len(names),):
        raise ValueError(f"values must be one for each of {len(names)} names, got {values.shape}")
    figure, axes = _figure(height=0.9 + 0.34 * len(names))
    at = np.arange(len(names))
    if band is not None:
        start, stop = (np.asarray(b, np.float64) for b in band)
        axes.barh(at, stop - start, left=start, height=0.8, color=_BAND, label="random")
        axes.legend(frameon=False)
    errors = None
    if low is not None and high is not None:
        # An end beyond the value by rounding is none.
        below = np.maximum(values - np.asarray(low), 0)
        errors = [below, np.maximum(np.asarray(high) - values, 0)]
    axes.barh(at, values, height=0.46, color=PALETTE[0], xerr=errors, ecolor=_INK, capsize=2)
    axes.set_yticks(at, list(names))
    axes.invert_yaxis()
    axes.axvline(0, color=_INK, linewidth=0.8)
    return _labelled(figure, axes, x, "")


def effects(found: Any, *, number: int = 0) -> Any:
    """Draws what switching units changes, concept by concept, and what random units change.

    Args:
      found: of `perturb.units.unit_effects` (or `gan_dissect.unit_effects`).
      number: which of its sets of units.
    Raises:
      ImportError: matplotlib is not installed.
      ValueError: there is no such set.
    """
    if not 0 <= number < len(found.change):
        raise ValueError(f"number must be from 0 to {len(found.change) - 1}, got {number}")
    size, band = found.sets[number].sum(), None
    same = np.flatnonzero(np.asarray(found.control_sizes) == size)
    if len(same) and found.control_change[same[0]].size:
        others = np.asarray(found.control_change[same[0]])
        band = others.min(0), others.max(0)
    return bars(
        list(found.concepts),
        found.change[number],
        low=found.change_low[number],
        high=found.change_high[number],
        band=band,
        x="change of the share of the picture",
    )


def _figure(width: float = 5.6, height: float = 3.6) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "curves and bars need matplotlib: pip install 'perturb-dissect[plots]'"
        ) from None

    class Shown(Figure):  # type: ignore[misc, unused-ignore]
        """A figure that a notebook shows without pyplot."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=120)
            return buffer.getvalue()

    figure = Shown(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=_SOFT)
    return figure, axes


def _labelled(figure: Any, axes: Any, x: str, y: str) -> Any:
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    return figure
