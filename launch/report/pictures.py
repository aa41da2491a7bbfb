"""Pictures of masks: the region in the image, and what the network was shown."""

from __future__ import annotations

import base64
import io
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence

import numpy as np
import PIL.Image

from perturb.drawing import OUTLINE, SIDE, enlarge, levels, overlay, png, sheet

__all__ = [
    "OUTLINE",
    "SIDE",
    "animation",
    "beside",
    "data_uri",
    "decode",
    "enlarge",
    "ffmpeg",
    "framed",
    "levels",
    "overlay",
    "png",
    "shown",
]


def decode(data: bytes) -> np.ndarray:
    """Returns a stored picture as `[H, W, 3]` uint8."""
    # Only what `images.encode` writes: a shard from elsewhere meets no other decoder.
    with PIL.Image.open(io.BytesIO(data), formats=("PNG", "WEBP")) as image:
        return np.asarray(image.convert("RGB"))


def shown(
    image: np.ndarray, removed: np.ndarray, mask: np.ndarray, *, delete: bool, side: int = SIDE
) -> np.ndarray:
    """Returns the image with the region kept, or removed, by the binary mask: `[h, w, 3]` uint8.

    Args:
      image: `[H, W, 3]` uint8.
      removed: the image with everything removed, `[H, W, 3]` uint8.
      mask: `[H, W]` in [0, 1], cut at .5.
      delete: whether the region is what was removed.
      side: px of the longer side of the result.
    """
    keep = (mask > 0.5) != delete
    return enlarge(np.where(keep[..., None], image, removed), side)


def data_uri(pixels: np.ndarray) -> str:
    """Returns a picture `[h, w, 3]` uint8 as a `data:` address."""
    buffer = io.BytesIO()
    # A page of hundreds of pictures has to stay small and be written fast.
    PIL.Image.fromarray(pixels).save(buffer, "WEBP", quality=82, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def framed(patch: np.ndarray, side: int) -> np.ndarray:
    """Returns a picture `[h, w, C]` in [0, 1] in the middle of a white square `[side, side, 3]`
    uint8: patches at the border of a picture are cut off by it, and differ in size.
    """
    drawn = enlarge(levels(patch), side)
    height, width = drawn.shape[:2]
    tile = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    tile[top : top + height, left : left + width] = drawn
    return tile


def beside(tiles: Sequence[np.ndarray], gap: int = 4) -> np.ndarray:
    """Returns pictures `[h, w, 3]` uint8 of one size side by side, white between them."""
    return sheet([tiles], gap)


def animation(
    frames: Sequence[np.ndarray], *, kind: str = "webp", milliseconds: int = 120
) -> bytes:
    """Returns frames `[h, w, 3]` uint8, there and back for ever, as an animated "webp" or "gif", or
    an "mp4".

    Raises:
      ValueError: for an mp4 where there is no ffmpeg.
    """
    if kind == "mp4":
        return _video([*frames, *frames[-2:0:-1]], 1000 / milliseconds)
    there = [PIL.Image.fromarray(frame) for frame in frames]
    # There and back without repeating either end, or the turn would seem to stop.
    first, *rest = [*there, *there[-2:0:-1]]
    buffer = io.BytesIO()
    first.save(
        buffer,
        kind.upper(),
        save_all=True,
        append_images=rest,
        duration=milliseconds,
        loop=0,
        **({"quality": 85, "method": 2} if kind == "webp" else {}),
    )
    return buffer.getvalue()


def ffmpeg() -> str:
    """Returns where ffmpeg is.

    Raises:
      ValueError: if there is none on the PATH.
    """
    found = shutil.which("ffmpeg")
    if found is None:
        raise ValueError(
            "--animation=mp4: there is no ffmpeg on the PATH; install it, or take webp"
        )
    return found


def _video(frames: Sequence[np.ndarray], rate: float) -> bytes:
    """H.264 at even width and height, which its colours need."""
    height, width = (n - n % 2 for n in frames[0].shape[:2])
    raw = b"".join(np.ascontiguousarray(f[:height, :width, :3]).tobytes() for f in frames)
    # A file, not a pipe: ffmpeg has to go back in an MP4 to fill in its sizes.
    with tempfile.TemporaryDirectory() as folder:
        to = pathlib.Path(folder, "walk.mp4")
        command = [
            ffmpeg(),
            "-loglevel",
            "error",
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-s",
            f"{width}x{height}",
            "-r",
            f"{rate:.6g}",
            "-i",
            "-",
            "-pix_fmt",
            "yuv420p",
            str(to),
        ]
        done = subprocess.run(command, input=raw, capture_output=True, check=False)
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise ValueError(f"--animation=mp4: ffmpeg failed: {' '.join(words)[:200]}")
        return to.read_bytes()
