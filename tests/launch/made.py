"""Finished runs of every kind of page, by hand: nothing is computed, and every part that a page can
have is there.
"""

import numpy as np

from launch.demo import __main__ as demo
from launch.demo import world
from launch.job import manifest, run
from launch.jobs.compare import page as compared
from launch.jobs.dissect import page as units
from launch.jobs.dissect_model import page as answering
from launch.jobs.evaluate import page as league
from launch.jobs.features import page as wall
from launch.jobs.masks import page as masks
from launch.jobs.walk import page as walks
from perturb.metrics import suite
from tests.launch.test_results import Channels, committed, some_masks

RNG = np.random.default_rng(0)
# Longer than any column: a page has to break it.
LONG = "a long name of something " * 3


def job(out, flags, model, shards):
    """A finished run of these settings, with a shard for each of (arrays, record)."""
    listed = manifest.parts([("made", len(shards))], 1)
    described = {"name": "toy", "fingerprint": "0" * 64} | model
    made = run.Run(out, flags, described, listed, shard_rows=1)
    for shard, (arrays, record) in enumerate(shards):
        made.commit(shard, arrays, {"items": [], "rows": [], "errors": []} | record)
    made.finish()
    return out


def tiles(*shape):
    """Pictures of noise, uint8."""
    return RNG.integers(0, 256, (*shape, 3), np.uint8)


def two_networks(folder):
    """The page of `make demo`."""
    shown = world.pictures(2, watermark="right")
    one = demo.Explained("crescent", 0.98, 0.91, np.zeros((64, 64)), 0.7, 0.1)
    one = one._replace(verdict="doubtful", reasons=("a long reason " * 9,))
    explained = [[one._replace(mask=np.eye(64)) for _ in shown]] * 2
    accuracy = {"none": 1.0, "right": 1.0, "wrong": 0.123}
    summary = {"accuracy": accuracy, "on_object": 0.87, "on_mark": 0.0}
    folder.mkdir()
    page = folder / "index.html"
    page.write_bytes(demo._page(shown, explained, {"honest": summary, "cheat": summary}))
    return page


def regions(folder):
    """A run of masks, with every badge that a card can have."""
    found = some_masks(batch=3)
    status = np.array([["ok", "not_converged"], ["nonfinite", "ok"], ["ok", "ok"]])
    names = [f"{LONG}{i}.png" for i in range(3)]
    flags = {"areas": [0.1, 0.3], "target": "csv"}
    committed(folder, found._replace(status=status), names=names, flags=flags)
    return masks.write(folder)


def no_regions(folder):
    """A run of masks in which no picture could be used."""
    made = committed(folder, some_masks(batch=1), commit_last=False)
    made.commit(0, {}, {"items": [], "rows": [], "errors": [{"image": "00.png", "error": LONG}]})
    made.finish()
    return masks.write(folder)


def channels(folder):
    """A run of channel masks, whose numbers are more than a card has room for."""
    chosen = np.ones((2, 1, 600), np.float32)
    found = some_masks(batch=2, areas=(1.0,))
    flags = {"layer": "conv", "counts": [600]}
    committed(folder, Channels(chosen, (600,), *found[3:]), method="channels", flags=flags)
    return masks.write(folder)


def side_by_side(folder):
    """Two runs of masks compared."""
    regions(folder / "run")
    return compared.write(folder, (folder / "run", folder / "run"), (LONG, "B"))


def attributions(folder):
    """A league of attributions, one of them maps of the user's own, on every metric."""
    names = ["grad_cam", f"maps:/maps/{'my_maps_' * 5}", "random", "centre", "sobel"]
    rows = [
        {
            "id": f"{i}.png",
            "target": 0,
            "attribution": name,
            "values": dict.fromkeys(suite.SUITE, 0.1 * n + 0.01 * i),
        }
        for n, name in enumerate(names)
        for i in range(4)
    ]
    flags = {"attributions": names, "metrics": list(suite.SUITE)}
    job(folder, flags, {}, [({}, {"rows": rows})])
    return league.write(folder, league.table(folder))


def walked(folder):
    """Walks with scores, some of them missing, and random directions."""
    names = ["background lightness", *(f"score {i}" for i in range(9))]
    flags = {"from": -3.0, "to": 3.0, "frames": 7, "controls": 2}
    direction = {
        **{"name": names[0], "kind": "attribute", "auc_test": 0.98, "auc_low": 0.97},
        **{"auc_high": 1.0, "left_out": 3, "scored": 197},
    }
    shards = []
    for _ in range(3):
        scores = RNG.normal(size=(7, 10)) * 10.0 ** np.arange(-5, 5)
        scores[2, 4] = np.nan
        arrays = {"frames": tiles(7, 16, 16), "scores": scores}
        arrays["others"] = RNG.normal(size=(2, 7, 10))
        shards.append((arrays, {"names": names}))
    job(folder, flags, {"direction": direction}, shards)
    return walks.write(folder)


def drawn_units(folder):
    """Units of a generator, switched off and on, with the longest numbers that there may be."""
    concepts = ["object", "background lightness", "checks"]
    bounds = {"change": -0.12345, "change_low": -0.12345, "change_high": 0.12345}
    bounds |= {"before": 0.12, "after": 0.0, "random_low": -0.12345, "random_high": 0.12345}
    bounds |= {"ratio": 0.02, "ratio_low": 0.01, "ratio_high": 0.03, "p_value": 0.02}
    rows = [
        {
            **{"kind": "effect", "state": state, "concept": concept, "images": 180},
            "effect": bounds,
            "leakage": {c: bounds for c in concepts if c != concept},
        }
        for concept in concepts
        for state in ("off", "on")
    ]
    items = [{"concept": c, "units": [3, 1, 7, 100, 101, 102, 103, 104]} for c in concepts]
    arrays = {f"table.{k}": np.full((128, 3), 0.123) for k in ("iou", "iou_low", "iou_high")}
    arrays |= {"table.chance": np.full((128, 3), 0.04), "table.interpretable": np.ones(128, bool)}
    arrays |= {"shown": np.array([1, 3, 7]), "top.images": tiles(3, 4, 16, 16)}
    arrays |= {"top.active": RNG.random((3, 4, 8, 8)) > 0.5}
    arrays |= {"before": tiles(3, 6, 16, 16), "edited": tiles(3, 2, 6, 16, 16)}
    flags = {"layer": "layer2/a/very/long/name/of/a/layer", "quantile": 0.99, "units": 8}
    flags |= {"samples": 2000, "effect_samples": 200, "controls": 40}
    job(folder, flags, {}, [(arrays, {"concepts": concepts, "items": items, "rows": rows})])
    return units.write(folder)


def answering_units(folder):
    """Units of a classifier, with pages of their own."""
    layer = "features.12/squeeze/relu"
    rows = [
        {
            **{"layer": layer, "unit": u, "concept": "stripes and checks", "verdict": verdict},
            **{"iou": 0.123, "iou_low": 0.1, "iou_high": 0.15, "chance": 0.02, "p_value": 0.004},
            **{"cost": 0.31, "cost_low": -0.1, "cost_high": 0.5},
        }
        for u, verdict in enumerate(("passes", "fails", "passes"))
    ]
    tie = {"layer": "conv1", "unit": 4, "correlation": 0.51, "concept": "grass"}
    checks = {"top": True, "range": False, "cost": None, "ties": True}
    portraits = [
        {
            **{"unit": u, "top": [9.0, 4.0], "range": [0.1, 0.2, 0.3, 0.4], "ties": [tie]},
            **{"checks": checks, "agreement": "does not all fit"},
        }
        for u in range(3)
    ]
    item = {"layer": layer, "shown": [0, 1], "passes": 2, "units": 3, "rule": 3}
    item |= {"null_share": 0.1, "aligned": 0.05}
    arrays = {f"0|{u}": tiles(5, 96, 96) for u in range(2)}
    arrays |= {f"page|0|{u}": tiles(9, 96, 96) for u in range(3)}
    record = {"items": [item], "portraits": [portraits], "rows": rows}
    flags = {"samples": 300, "quantile": 0.99, "networks": 10, "rotations": 20}
    job(folder, flags, {}, [(arrays, record)])
    return answering.write(folder)


def one_unit(folder):
    """The page of one unit of a classifier."""
    return answering_units(folder).parent / "unit-0-0.html"


def features(folder):
    """A wall of pictures of both embedded networks, with every verdict that one can have."""
    words = (
        *("shows more than any natural picture", "shows no more than natural pictures do"),
        *("busy: high frequencies", "did not start", "not finite"),
        "started; no natural pictures to compare with",
    )
    rows = [
        {
            **{"network": network, "name": f"unit {i}", "started": i < 3, "verdict": verdict},
            **{"reach": None if i > 3 else 0.993, "ratio": 12.3 if i < 3 else None},
            **{"stamp": "crescent", "stamp_match": 0.71},
        }
        for network in ("demo", "demo_cheat")
        for i, verdict in enumerate(words)
    ]
    arrays = {"images": tiles(len(rows), 16, 16)}
    flags = {"layer": None, "preset": "fourier", "seed": 0}
    model = {"networks": ["demo", "demo_cheat"]}
    job(folder, flags, model, [(arrays, {"rows": rows})])
    return wall.write(folder)


# Every kind of page that a command leaves.
KINDS = {
    made.__name__: made
    for made in (
        *(two_networks, regions, no_regions, channels, side_by_side, attributions, walked),
        *(drawn_units, answering_units, one_unit, features),
    )
}
