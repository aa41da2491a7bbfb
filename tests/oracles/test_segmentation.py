"""A worked case against others' annotation: what a road-scene network needs to see to say car."""

import json

import numpy as np
import PIL.Image

import perturb
from tests import graphnet

FRAME = "0001TP_009840.png"  # of CamVid: cars on a tenth of the picture


def test_what_a_segmentation_needs_to_see_to_call_a_region_car(data_dir, record_property):
    mean, std = np.array([110.3314, 108.4092, 105.0335]), np.array([72.1252, 72.6885, 69.9026])
    model = graphnet.model(
        data_dir / "weights" / "espnet_camvid.json",
        mean=mean / 255,
        std=std,
        bgr=True,
        output="segmentation",
    )
    folder, size = data_dir / "seg" / "camvid", (240, 176)
    names = json.loads((folder / "classes.json").read_text())["classes"]
    car = next(int(i) for i, name in names.items() if name == "car")
    with PIL.Image.open(folder / "masks" / FRAME) as labels:
        truth = np.asarray(labels.resize(size, PIL.Image.Resampling.NEAREST)) == car
    with PIL.Image.open(folder / "images" / FRAME) as frame:
        image = np.asarray(frame.convert("RGB").resize(size), np.float32)[None] / 255
    found = perturb.extremal(
        model,
        image,
        (np.array([car]), truth[None].astype(np.float32)),
        areas=0.15,
        reward="region",
        steps=15,
    )
    kept = found.masks[0, 0] > 0.5
    whole, binary, floor = (
        float(np.ravel(score)[0])
        for score in (found.score_original, found.score_binary, found.score_floor)
    )
    record_property("whole, kept, floor", f"{whole:.2f}, {binary:.2f}, {floor:.2f}")
    record_property(
        "cars in the picture, in the mask", f"{truth.mean():.3f}, {truth[kept].mean():.3f}"
    )
    # The street around the cars is not what makes them cars; they themselves nearly suffice.
    assert truth[kept].mean() > 3 * truth.mean()
    assert binary > whole - 0.3 * (whole - floor)
