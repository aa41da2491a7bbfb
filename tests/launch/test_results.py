import json
from typing import Any, NamedTuple

import numpy as np
import pytest

from launch import results
from launch.inputs import images
from launch.job import manifest, run


class Masks(NamedTuple):
    masks: Any
    areas: Any
    achieved_area: Any
    score_original: Any
    score_masked: Any
    score_binary: Any
    score_floor: Any
    status: Any

    @property
    def kind(self):
        return "masks"


class Channels(NamedTuple):
    channels: Any
    counts: Any
    score_original: Any
    score_masked: Any
    score_binary: Any
    score_floor: Any
    status: Any

    @property
    def kind(self):
        return "channels"

    @property
    def areas(self):
        return np.asarray(self.counts) / np.shape(self.channels)[-1]

    @property
    def achieved_area(self):
        return np.asarray(self.channels).mean(-1, dtype=np.float64)


def some_masks(batch=3, areas=(0.1, 0.3), size=(9, 7), seed=0):
    rng = np.random.default_rng(seed)
    masks = rng.uniform(size=(batch, len(areas), *size)).astype(np.float32)
    # Values that float16 rounds onto .5 and across it.
    masks[:, :, 0, :4] = np.array([0.50001, 0.49999, 0.5, 0.5002], np.float32)
    scores = rng.normal(size=(3, batch, len(areas))).astype(np.float32) + 5
    return Masks(
        masks,
        np.array(areas, np.float32),
        (masks > 0.5).mean((2, 3)),
        # Scores above 0 and floors far below them, so that effects have a denominator.
        scores[0, :, 0] + 3,
        scores[1],
        scores[2],
        scores[0, :, 0] - 9,
        np.full((batch, len(areas)), "ok"),
    )


def committed(out, result, *, names=None, method="extremal", flags=None, commit_last=True):
    """Writes `result` as a run of several shards."""
    count = len(result.score_original)
    names = names or [f"{i:02d}.png" for i in range(count)]
    listed = manifest.Manifest("/", tuple(manifest.Item(name, 1) for name in names))
    settings = {"method": method, "game": "preserve", "operator": "blur", **(flags or {})}
    model = {"name": "toy", "fingerprint": "0" * 64}
    job = run.Run(out, settings, model, listed)
    shards: dict[int, list[int]] = {}
    for slot, (shard, _) in enumerate(job.pending()):
        shards.setdefault(shard, []).append(slot)
    for shard, slots in list(shards.items())[: None if commit_last else -1]:
        arrays, entries, rows = {}, [], []
        for place, slot in enumerate(slots):
            identity = {"id": f"{names[slot]}@0", "image": names[slot], "target": slot % 4}
            item_rows = results.rows(
                result, slot, identity=identity, crop=(0.0, 0.0, 7.0, 9.0), removal="blur"
            )
            found = results.arrays(result, slot)
            # Another grey for each picture, so that a mix-up shows.
            found["image"] = images.encode(np.full((9, 7, 3), slot / count))
            if method != "channels":
                found["removed"] = images.encode(np.full((9, 7, 3), 0.5))
            arrays |= {f"{place}.{name}": value for name, value in found.items()}
            entry = {"id": identity["id"], "target": slot % 4}
            entry["areas"] = [row["area"] for row in item_rows]
            if method == "channels":
                entry["channels"] = result.channels.shape[-1]
            entries.append(entry)
            rows += item_rows
        job.commit(shard, arrays, {"items": entries, "rows": rows, "errors": []})
    if commit_last:
        job.finish()
    return job


def test_masks_read_back_to_the_bit_and_to_float16(tmp_path):
    # Twenty pictures: two shards, the second with four.
    result = some_masks(batch=20)
    committed(tmp_path, result)
    got = results.load(tmp_path)
    assert got["masks"].dtype == np.float32
    np.testing.assert_array_equal(got["masks"] > 0.5, result.masks > 0.5)
    # Half the step of float16 below 1 is 2.4e-4.
    np.testing.assert_allclose(got["masks"], result.masks, atol=5e-4)
    np.testing.assert_allclose(got["areas"], [0.1, 0.3])
    np.testing.assert_allclose(got["achieved_area"], result.achieved_area)
    assert got["ids"].tolist() == [f"{i:02d}.png@0" for i in range(20)]
    assert got["targets"].tolist() == [i % 4 for i in range(20)]
    assert len(got["rows"]) == 40
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == got["rows"]
    streamed = list(results.iter(tmp_path))
    np.testing.assert_array_equal(np.stack([item["masks"] for item in streamed]), got["masks"])


def test_packed_bits_hold_the_binary_mask():
    result = some_masks()
    bits = results.arrays(result, 1)["bits"]
    # 63 pixels need eight bytes, of which the last bit is nobody's.
    unpacked = np.unpackbits(bits, axis=-1, count=63).reshape(2, 9, 7)
    np.testing.assert_array_equal(unpacked, result.masks[1] > 0.5)


def test_rows_have_the_pinned_fields_and_no_nan():
    result = some_masks()
    scores = np.array(result.score_binary)
    scores[0, 1] = np.nan
    status = np.array([["ok", "nonfinite"]] * 3)
    # The two areas of a picture end differently: their rows must not share a status.
    result = result._replace(score_binary=scores, status=status)
    identity = {"id": "x", "image": "x", "target": 2}
    rows = results.rows(result, 0, identity=identity, crop=(1, 2, 3, 4.00049), removal="blur")
    evidence = rows[0].pop("evidence")
    assert sorted(rows[0]) == [
        *("achieved_area", "area", "crop", "id", "image", "score_binary", "score_floor"),
        *("score_masked", "score_original", "status", "target"),
    ]
    assert rows[0]["area"] == pytest.approx(0.1)
    assert rows[1]["score_binary"] is None
    assert rows[1]["status"] == "nonfinite"
    # Rounded to thousandths of a pixel, so that rows do not depend on the last bit of a float.
    assert rows[0]["crop"] == [1, 2, 3, 4.0]
    assert evidence == {
        "floor": {"blur": rows[0]["score_floor"]},
        "transfer": {},
        "transfer_ratio": None,
        "control_percentile": None,
        "verdict": None,
        "reasons": [],
    }
    # JSON has no NaN, and other readers refuse what Python would write for it.
    json.dumps(rows, allow_nan=False)


def test_meaningful_areas_are_those_achieved(tmp_path):
    result = some_masks(areas=(0.2,))
    committed(tmp_path, result._replace(areas=result.achieved_area), method="meaningful")
    got = results.load(tmp_path)
    assert got["masks"].shape == (3, 1, 9, 7)
    np.testing.assert_allclose(got["areas"], result.achieved_area)


def test_channels_read_back(tmp_path):
    rng = np.random.default_rng(0)
    # 21 is no multiple of eight, into which bits are packed.
    channels = (rng.uniform(size=(3, 2, 21)) > 0.5).astype(np.float32)
    masks = some_masks()
    result = Channels(channels, (2, 4), *masks[3:])
    committed(tmp_path, result, method="channels", flags={"layer": "conv", "counts": [2, 4]})
    got = results.load(tmp_path)
    np.testing.assert_array_equal(got["channels"], channels)
    assert "masks" not in got
    assert [row["count"] for row in got["rows"][:2]] == [2, 4]
    np.testing.assert_allclose(got["areas"], [2 / 21, 4 / 21], rtol=1e-6)
    np.testing.assert_allclose(got["achieved_area"], channels.mean(-1), rtol=1e-6)


def test_only_committed_shards_are_read(tmp_path):
    # The 16 of the first shard; the arrays of the second were never committed.
    committed(tmp_path, some_masks(batch=20), commit_last=False)
    assert len(results.load(tmp_path)["ids"]) == 16
    some = list(results.records(tmp_path, only={3, 15}))
    assert [record["id"] for record in some] == ["03.png@0", "15.png@0"]


def test_several_sizes_stream_but_do_not_stack(tmp_path):
    committed(tmp_path / "a", some_masks())
    committed(tmp_path / "b", some_masks(size=(5, 5)))
    for source in (tmp_path / "b" / "shards").glob("000000*"):
        # The record names its arrays, so only its own name says which shard it is.
        name = "000001.json" if source.suffix == ".json" else source.name
        (tmp_path / "a" / "shards" / name).write_bytes(source.read_bytes())
    shapes = {item["masks"].shape for item in results.iter(tmp_path / "a")}
    assert shapes == {(2, 9, 7), (2, 5, 5)}
    with pytest.raises(ValueError, match=r"results\.iter"):
        results.load(tmp_path / "a")
