import json

import numpy as np
import pytest

from launch import ground_truth
from perturb import metrics

VOC = """<annotation><size><width>60</width><height>40</height></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>20</xmax><ymax>15</ymax></bndbox></object>
<object><name>dog</name><difficult>1</difficult>
<bndbox><xmin>31</xmin><ymin>6</ymin><xmax>40</xmax><ymax>15</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object>
</annotation>"""


def test_voc_boxes_are_united_and_difficult_classes_named(tmp_path):
    path = tmp_path / "000001.xml"
    path.write_text(VOC)
    truth = ground_truth.voc(path)
    assert truth.size == (40, 60)
    # Two boxes of 10 x 10: VOC counts from 1 and both ends belong to a box.
    assert truth.masks["dog"].sum() == 200
    assert truth.masks["dog"][5:15, 10:20].all()
    assert truth.skip == {"cat"}
    maps = np.zeros((2, 40, 60))
    # The same point on both maps: a hit where it lies in the dog, and no answer for the cat.
    maps[:, 10, 15] = 1
    both = np.stack([truth.masks["dog"], truth.masks["cat"]])
    hits = metrics.pointing(maps, both, tolerance=1, skip=[n in truth.skip for n in ("dog", "cat")])
    assert hits[0] == 1
    assert np.isnan(hits[1])
    path.write_text("<annotation>")
    with pytest.raises(ValueError, match="VOC annotation"):
        ground_truth.voc(path)


def compressed(runs):
    """COCO's string form, from its description."""
    text = ""
    for i, run in enumerate(runs):
        # From the fourth run on, the difference from the run before the last.
        value = run - runs[i - 2] if i > 2 else run
        more = True
        while more:
            # Groups of five bits, lowest first; the sixth bit says that there is more.
            bits = value & 31
            value >>= 5
            more = value != -1 if bits & 16 else value != 0
            text += chr(48 + (bits | (32 if more else 0)))
    return text


def test_coco_masks_of_polygons_and_run_lengths(tmp_path):
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:17] = True
    mask[12:19, 20:28] = True
    # COCO runs down the columns.
    columns = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(columns.astype(int))) + 1
    runs = np.diff([0, *edges, columns.size]).tolist()
    things = [
        {"image_id": 7, "category_id": 1, "segmentation": {"size": [20, 30], "counts": runs}},
        {"image_id": 7, "category_id": 2, "segmentation": {"counts": compressed(runs)}},
        # Corners are the outermost pixels themselves, which belong to the polygon.
        {"image_id": 7, "category_id": 3, "segmentation": [[4, 3, 16, 3, 16, 8, 4, 8]]},
        {"image_id": 7, "category_id": 3, "segmentation": [[20, 12, 27, 12, 27, 18, 20, 18]]},
    ]
    data = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": 20, "width": 30}],
        "categories": [{"id": i, "name": n} for i, n in ((1, "dog"), (2, "cat"), (3, "cow"))],
        "annotations": things,
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(data))
    truth = ground_truth.coco(path)["a.jpg"]
    for name in ("dog", "cat", "cow"):
        np.testing.assert_array_equal(truth.masks[name], mask)
    path.write_text("{}")
    with pytest.raises(ValueError, match="COCO instances"):
        ground_truth.coco(path)


def test_difficult_pairs(tmp_path):
    path = tmp_path / "difficult.txt"
    path.write_text("000001 0 1 0\n000002 0 0 0\n000004 1 0 1\n")
    # Columns are classes, from 0; a 1 marks a difficult pair.
    assert ground_truth.difficult_pairs(path) == {("000001", 1), ("000004", 0), ("000004", 2)}
    path.write_text("000001 2\n")
    with pytest.raises(ValueError, match="line 1"):
        ground_truth.difficult_pairs(path)
