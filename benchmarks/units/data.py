"""What the programs here look at, and how they print it."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import numpy as np
import PIL.Image

from launch.demo import world

NAMES = world.label_names[1:]


def folder() -> pathlib.Path:
    """Where the real data lie."""
    return pathlib.Path(os.environ["PERTURB_DATA"])


def stamped(count: int, seed: int = 11) -> tuple[np.ndarray, np.ndarray, world.Pictures]:
    """Pictures of the embedded world with a random stamp, and masks of all that is in them."""
    drawn = world.render_batch(seed, range(count), watermark="random")
    return drawn.image, drawn.label[..., None] == 1 + np.arange(len(NAMES)), drawn


def camvid(size: int = 224) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Street frames, squeezed to a square, and the true masks of the classes that occur."""
    root = folder() / "seg" / "camvid"
    classes = {
        int(i): n for i, n in json.loads((root / "classes.json").read_text())["classes"].items()
    }
    frames, labels = [], []
    for path in sorted((root / "images").glob("*.png")):
        with PIL.Image.open(path) as image, PIL.Image.open(root / "masks" / path.name) as mask:
            frames.append(np.asarray(image.convert("RGB").resize((size, size)), np.float32) / 255)
            # A mixture of two labels would be a third one.
            labels.append(np.asarray(mask.resize((size, size), PIL.Image.Resampling.NEAREST)))
    label = np.stack(labels)
    # In three frames at the least, or an interval over frames says nothing.
    used = [i for i in sorted(classes) if (label == i).any((1, 2)).sum() >= 3]
    masks = np.stack([label == i for i in used], -1)
    return np.stack(frames), masks, tuple(classes[i] for i in used)


def photographs(size: int = 224) -> np.ndarray:
    """The labelled photographs: short side to 256, middle 224."""
    found = []
    for path in sorted((folder() / "imagenet" / "images").iterdir()):
        with PIL.Image.open(path) as image:
            image = image.convert("RGB")
            scale = 256 / min(image.size)
            image = image.resize([round(s * scale) for s in image.size])
            left, top = ((s - size) // 2 for s in image.size)
            found.append(np.asarray(image.crop((left, top, left + size, top + size)), np.float32))
    return np.stack(found) / 255


def row(*cells: Any) -> None:
    """Prints a line of a table."""
    print("| " + " | ".join(str(c) for c in cells) + " |", flush=True)


def told(interval: Any, digits: int = 3) -> str:
    """An estimate and its interval in words."""
    return f"{interval.value:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"
