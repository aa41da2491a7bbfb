"""How masks of pictures show themselves: drawn into their images, as rows of a table, as files."""

from __future__ import annotations

import base64
import csv
import html
import pathlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from perturb.types import ArrayLike, PyTree, Record

if TYPE_CHECKING:
    import PIL.Image

    from perturb.methods._run import Result
    from perturb.methods.channels import ChannelResult

# Pictures in a notebook's cell; the rest is counted.
_MOST = 8


def _drawing() -> ModuleType:
    """Pillow is loaded when something is drawn: `import perturb` does without."""
    from perturb import drawing

    return drawing


def asked(result: Result | ChannelResult) -> np.ndarray:
    """Returns `[B, A]` areas asked, whether they were given once or for every image."""
    return np.broadcast_to(np.asarray(result.areas), result.achieved_area.shape)


def overlay(result: Result, images: ArrayLike, *, side: int) -> np.ndarray:
    """See `Result.overlay`."""
    masks, pictures = np.asarray(result.masks), np.asarray(images)
    if masks.ndim != 4:
        raise ValueError(
            f"overlay draws masks [B, A, H, W] of pictures, these are {list(masks.shape)}"
        )
    # A mask drawn into another picture would look like a finding.
    want = (len(masks), *masks.shape[2:])
    if pictures.ndim != 4 or pictures.shape[:3] != want or pictures.shape[3] not in (1, 3):
        raise ValueError(
            f"images must be the pictures of the masks, [{', '.join(map(str, want))}, 1 or 3], "
            f"got {list(pictures.shape)}"
        )
    # uint8 is what pictures are drawn in; floats are in [0, 1] as everywhere.
    if pictures.dtype != np.uint8:
        pictures = _drawing().levels(pictures)
    elif pictures.shape[3] == 1:
        pictures = pictures.repeat(3, -1)
    drawn = [
        [_drawing().overlay(picture, mask, side) for mask in row]
        for picture, row in zip(pictures, masks, strict=True)
    ]
    return np.asarray(drawn)


def rows(result: Result | ChannelResult) -> list[Record]:
    """Returns what the rows of every method say; see `Result.rows`."""
    areas = asked(result)
    number, several = areas.shape
    found = []
    for b in range(number):
        for a in range(several):
            row = {
                "image": b,
                "area": float(areas[b, a]),
                "achieved_area": float(result.achieved_area[b, a]),
                "score_original": float(result.score_original[b]),
                "score_floor": float(result.score_floor[b]),
                "score_binary": float(result.score_binary[b, a]),
                "probability_original": float(result.probability_original[b]),
                "probability_binary": float(result.probability_binary[b, a]),
                "steps": int(result.steps[b, a]),
                "status": str(result.status[b, a]),
            }
            agreement = getattr(result, "agreement", None)
            if agreement is not None:
                row["agreement"] = float(agreement[b, a])
            found.append(row)
    return found


def to_csv(result: Result | ChannelResult, path: Any) -> pathlib.Path:
    """See `Result.to_csv`."""
    # Its own: some methods add columns.
    found, to = result.rows(), pathlib.Path(path)
    # newline="": the csv module writes line ends of its own.
    with to.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    return to


def to_frame(result: Result | ChannelResult) -> PyTree:
    """See `Result.to_frame`."""
    try:
        import pandas
    except ImportError:
        raise ImportError(
            "to_frame() needs pandas: pip install pandas (rows() needs nothing)"
        ) from None
    return pandas.DataFrame(result.rows())


def save(result: Result, folder: Any, images: ArrayLike) -> pathlib.Path:
    """See `Result.save`."""
    to = pathlib.Path(folder)
    # Drawn before anything is written: images that do not fit leave no half-filled folder.
    drawn = None if images is None else overlay(result, images, side=_drawing().SIDE)
    to.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(to / "masks.npz", masks=result.masks, areas=asked(result))
    to_csv(result, to / "results.csv")
    if drawn is not None:
        for (b, a), area in np.ndenumerate(asked(result)):
            # In per cent, without trailing zeros: image0003_area2.5.png.
            name = f"image{b:04d}_area{100 * area:g}.png"
            (to / name).write_bytes(_drawing().png(drawn[b, a]))
    return to


def show(result: Result, images: ArrayLike, *, side: int) -> PIL.Image.Image:
    """See `Result.show`."""
    import PIL.Image

    return PIL.Image.fromarray(_drawing().sheet(list(overlay(result, images, side=side))))


def as_html(result: Result) -> str:
    """Returns the masks as a small table for a notebook: they know no pictures, so regions alone
    are drawn.
    """
    masks, areas = np.asarray(result.masks), asked(result)
    if masks.ndim != 4:
        return f"<pre>{html.escape(repr(result))}</pre>"
    lines = []
    for b, row in enumerate(masks[:_MOST]):
        cells = []
        for a, mask in enumerate(row):
            tile = _drawing().png(_drawing().enlarge((mask > 0.5).astype(np.uint8) * 255, 96))
            kept = result.probability_binary[b, a]
            below = f"{100 * areas[b, a]:.3g} %, " + (
                f"p {kept:.2f}"
                if np.isfinite(kept)
                else f"score {float(result.score_binary[b, a]):.3g}"
            )
            # Inside the page: a notebook keeps its outputs, not files beside it.
            source = base64.b64encode(tile).decode()
            alt = f"region of image {b}"
            cells.append(
                f'<td><img alt="{alt}" src="data:image/png;base64,{source}"><br>{below}</td>'
            )
        lines.append(f"<tr><th>{b}</th>{''.join(cells)}</tr>")
    more = len(masks) - _MOST
    rest = f"<p>and {more} more images</p>" if more > 0 else ""
    return f"<table>{''.join(lines)}</table>{rest}<p>with the pictures: result.show(images)</p>"
