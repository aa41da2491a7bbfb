"""What a run of masks leaves behind, written and read: rows for people, arrays for programs.

>>> import tempfile
>>> load(tempfile.gettempdir() + "/no such run")
Traceback (most recent call last):
ValueError: ...no such run holds no run: it has no run.json
"""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

import perturb
from launch.job import commit, store
from perturb import methods
from perturb.types import Options, PyTree, Record

__all__ = ["arrays", "committed", "iter", "load", "records", "rows", "settings", "summaries"]

Out = str | os.PathLike[str] | store.Address
SCORES = ("score", "probability")
PARTS = ("original", "masked", "binary", "floor")


def load(out: Out) -> Record:
    """Returns the results of a run, or of the committed part of one.

    Args:
      out: the folder or address given as `--out`.
    Returns:
      a dict of `ids` `[N]` (N counts image x target), `targets` `[N]`, `areas` `[A]` (`[N, A]`
      where every picture has its own, as of meaningful masks and of regions that suffice),
      `achieved_area` `[N, A]`, `masks` `[N, A, H, W]` float32 in [0, 1] at the model's input size
      (for channel masks `channels` `[N, A, C]` instead), and `rows`, a list of the N x A rows of
      results.jsonl.
    Raises:
      ValueError: if `out` holds no run, or its pictures have several sizes (use `iter`).
    """
    items = list(iter(out))
    settled = settings(out)
    # A method takes numbers of channels, areas of regions, or neither; results are of that kind.
    asked = _asked(settled["flags"]["method"])
    kind = "channels" if "counts" in asked else "masks"
    shapes = {item[kind].shape for item in items}
    # A model of any size gives masks of many: they cannot be one array.
    if len(shapes) > 1:
        raise ValueError(f"{out}: {kind} have several shapes {sorted(shapes)}: use results.iter")
    achieved = np.array([[row["achieved_area"] for row in item["rows"]] for item in items])
    areas = items[0]["areas"] if items else np.zeros(0)
    if not asked:
        # The area is a result, and differs from picture to picture.
        areas = achieved
    elif items and (
        settled["flags"]["method"] == "sufficient"
        or any(not np.array_equal(item["areas"], areas) for item in items)
    ):
        areas = np.stack([item["areas"] for item in items])
    return {
        "ids": np.array([item["id"] for item in items]),
        "targets": np.array([item["target"] for item in items], np.int64),
        "areas": np.asarray(areas, np.float32),
        "achieved_area": np.asarray(achieved, np.float32),
        kind: np.stack([item[kind] for item in items]) if items else np.zeros((0, 0, 0, 0)),
        "rows": [row for item in items for row in item["rows"]],
    }


def _asked(method: str) -> set[str]:
    """Returns which of `areas` and `counts` a method takes; of one unknown here, areas."""
    if method not in methods.NAMES:
        return {"areas"}
    return {"areas", "counts"} & set(inspect.signature(methods.get(method)).parameters)


def iter(out: Out) -> Iterator[Record]:
    """Yields the same, one image x target at a time: `id`, `target`, `areas`, `masks`, `rows`.

    Where other regions were found `alternatives` too: for each area `[K, H, W]` bool, as its row
    lists them.
    """
    for record in records(out):
        yield {k: v for k, v in record.items() if k not in ("image", "removed")}


def summaries(
    out: Out,
) -> Iterator[tuple[store.Path, int, Record, list[Record]]]:
    """Yields shard, place in it, entry and rows of every image x target, without reading arrays."""
    settings(out)
    stems = committed(out)
    for stem, record in zip(stems, commit.read_records(stems), strict=True):
        first = 0
        for place, entry in enumerate(record["items"]):
            count = len(entry["areas"])
            yield stem, place, entry, record["rows"][first : first + count]
            first += count


def committed(out: Out) -> list[store.Path]:
    """Returns where the committed shards lie, in order: a record is `stem.json`."""
    folder = store.path(out) / "shards"
    # Names are padded with zeros: their order as text is that of the numbers.
    names = sorted(name for name in store.names(folder) if name.endswith(".json"))
    return [folder / name.removesuffix(".json") for name in names]


def records(out: Out, only: Collection[int] | None = None) -> Iterator[Record]:
    """Yields what `iter` does with `image` and `removed`, the pictures as encoded bytes.

    Args:
      out: the folder of the run.
      only: places in the order of `iter`; other items are passed over without reading their shard.
    """
    at: store.Path | None = None
    data: dict[str, np.ndarray] = {}
    for number, (stem, place, entry, item_rows) in enumerate(summaries(out)):
        if only is not None and number not in only:
            continue
        # Items of a shard lie side by side: its arrays are read once.
        if at != stem:
            at, (_, data) = stem, commit.read_shard(stem)
        found = {
            "id": entry["id"],
            "target": entry["target"],
            "areas": np.array(entry["areas"], np.float32),
            "rows": item_rows,
            "image": data[f"{place}.image"].tobytes(),
            "removed": data[f"{place}.removed"].tobytes() if f"{place}.removed" in data else b"",
        }
        if "channels" in entry:
            # Bits come in whole bytes; the entry says how many of them count.
            bits = np.unpackbits(data[f"{place}.channels"], axis=-1, count=entry["channels"])
            found["channels"] = bits.astype(np.float32)
        else:
            found["masks"] = data[f"{place}.soft"].astype(np.float32)
            if f"{place}.others" in data:
                found["alternatives"] = _split(data[f"{place}.others"], found["masks"], item_rows)
        yield found


def _split(packed: np.ndarray, masks: np.ndarray, item_rows: list[Record]) -> list[np.ndarray]:
    """Returns for each area the other regions `[K, *size]` bool."""
    size = masks.shape[1:]
    bits = np.unpackbits(packed, axis=-1, count=math.prod(size)).astype(bool)
    ends = np.cumsum([len(row.get("alternatives", [])) for row in item_rows])[:-1]
    return np.split(bits.reshape(-1, *size), ends)


def settings(out: Out) -> Record:
    """Returns run.json.

    Raises:
      ValueError: if `out` holds no run.
    """
    try:
        found: Record = json.loads((store.path(out) / "run.json").read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{out} holds no run: it has no run.json") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{out} holds no run: its run.json is no JSON") from error
    parts = [found.get(name) for name in ("flags", "model")] if isinstance(found, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{out} holds no run: its run.json is no record of one")
    return found


def rows(
    result: Any,
    slot: int,
    *,
    identity: Options,
    crop: tuple[float, ...],
    removal: str,
    evidence: Any = None,
) -> list[Record]:
    """Returns the rows of one image x target: one an area, every number finite or null.

    Args:
      result: what a method returned for a batch; its `kind` says whether masks or channels.
      slot: which image of the batch.
      identity: the fields that name the image and the target.
      crop: the part of the photograph that the model saw, in px.
      removal: name of what is taken away where nothing is left.
      evidence: `perturb.evidence.Evidence` of the batch, `perturb.stability.Full`, or None where
        nothing was checked.
    """
    areas, achieved = np.asarray(result.areas), np.asarray(result.achieved_area)[slot]
    out = []
    for a, area in enumerate(areas[slot] if areas.ndim == 2 else areas):
        row = {**identity, "area": _number(area), "achieved_area": _number(achieved[a])}
        if result.kind == "channels":
            row["count"] = int(np.asarray(result.counts)[a])
        for kind in SCORES:
            for part in PARTS:
                values = getattr(result, f"{kind}_{part}", None)
                if values is not None:
                    # Some scores are one a picture, others one an area.
                    value = np.asarray(values)[slot]
                    row[f"{kind}_{part}"] = _number(value if np.ndim(value) == 0 else value[a])
        row["status"] = _status(result, slot, a)
        agreement = getattr(result, "agreement", None)
        if agreement is not None and np.isfinite(agreement[slot, a]):
            row["agreement"] = _number(agreement[slot, a])
        if getattr(result, "alternatives", None) is not None:
            row["alternatives"] = [
                {n: _number(v) for n, v in other._asdict().items() if n != "mask"}
                for other in result.alternatives[slot][a]
            ]
        row["crop"] = [round(float(side), 3) for side in crop]
        row["evidence"] = {
            "floor": {removal: row["score_floor"]},
            "transfer": {},
            "transfer_ratio": None,
            "control_percentile": None,
            "verdict": None,
            "reasons": [],
        }
        if evidence is not None:
            # The full checks hold the default ones as their card.
            card = getattr(evidence, "card", evidence)
            floors = {n: _number(v[slot]) for n, v in card.floor.items()}
            row["evidence"] |= _evidence(card, slot, a)
            # Last, for this is the floor under the fill that the mask was sought with.
            row["evidence"]["floor"] = floors | {removal: row["score_floor"]}
            if card is not evidence:
                row["evidence"]["full"] = {
                    n: _number(v[slot, a])
                    for n, v in evidence._asdict().items()
                    if n != "card" and v is not None
                }
        out.append(row)
    return out


def _evidence(found: PyTree, slot: int, a: int) -> Record:
    """Returns the evidence of one mask for people and programs; what is not known is null."""
    at = (slot, a)
    out: Record = {
        "gain": _number(found.gain[at]),
        "transfer": {n: _number(v[at]) for n, v in found.transfer.items()},
        "transfer_ratio": _number(found.transfer_ratio[at]),
        "control_percentile": _number(found.control_percentile[at]),
        "control_gain": _number(found.control_gain[at]),
        "sufficient_area": _number(found.sufficient_area[at]),
        "overdriven": bool(found.overdriven[at]),
        "verdict": str(found.verdict[at]),
        "reasons": list(found.reasons[slot][a]),
    }
    overlap = getattr(found, "key_overlap", None)
    if overlap is not None and np.isfinite(overlap[at]):
        out["key_overlap"] = _number(overlap[at])
    # Without probabilities the classes have no ranks.
    if np.isfinite(found.probability_original[slot]):
        out["answer"] = {
            "probability_original": _number(found.probability_original[slot]),
            "probability": {n: _number(v[at]) for n, v in found.probability.items()},
            "rank": {n: int(v[at]) for n, v in found.rank.items()},
            "answered": {
                n: None if np.isnan(v[at]) else bool(v[at]) for n, v in found.answered.items()
            },
            "copies_answered": _number(found.control_answered[at]),
        }
        if found.rank_original is not None:
            out["answer"]["rank_original"] = int(found.rank_original[slot])
    if found.curve is not None:
        gains = [_number(v) for v in found.curve[at]]
        out["curve"] = {"areas": list(perturb.evidence.AREAS), "gains": gains}
    if found.rival[at] >= 0:
        out["rival"] = {"target": int(found.rival[at]), "score": _number(found.rival_score[at])}
    return out


def arrays(result: Any, slot: int) -> dict[str, np.ndarray]:
    """Returns the arrays to store for one image x target: packed bits and float16.

    A value that float16 would move across .5 stays on its side, so that `masks > .5` read back is
    the binary mask bit by bit.
    """
    if result.kind == "channels":
        return {"channels": np.packbits(np.asarray(result.channels)[slot] > 0.5, axis=-1)}
    soft = np.asarray(result.masks)[slot]
    binary = soft > 0.5
    half = soft.astype(np.float16)
    # float16 has eleven bits: a value just above .5 may round to .5 itself.
    half[binary & (half <= 0.5)] = np.nextafter(np.float16(0.5), np.float16(1))
    half[~binary & (half > 0.5)] = np.float16(0.5)
    found = {"soft": half, "bits": np.packbits(binary.reshape(len(binary), -1), axis=-1)}
    listed = getattr(result, "alternatives", None)
    # All areas behind one another: their numbers stand in the rows, which `_split` reads.
    others = [other.mask for at_area in listed[slot] for other in at_area] if listed else []
    if others:
        found["others"] = np.packbits(np.stack(others).reshape(len(others), -1), axis=-1)
    return found


def _status(result: Any, slot: int, a: int) -> str:
    status = np.asarray(result.status)
    if status.ndim == 0:
        return str(status)
    return str(status[slot] if status.ndim == 1 else status[slot, a])


def _number(value: Any) -> float | None:
    # Nine digits give every float32 back; JSON has no NaN, and null cannot be averaged by mistake.
    return float(f"{float(value):.9g}") if np.isfinite(value) else None
