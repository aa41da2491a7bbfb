import html.parser
import re
import shutil
import subprocess

import numpy as np
import pytest

from launch.jobs.masks import cards, page
from launch.report import pictures
from tests.launch.test_results import Channels, committed, some_masks

HOSTILE = [
    # A tag, the end of an attribute, an address, a handler, the end of a script, an entity,
    # a mark that turns reading round, and characters that no terminal should be given.
    "<script>alert(1)</script>.png",
    '"><img src=x onerror=alert(1)>.png',
    "javascript:alert(1).png",
    "' onmouseover='alert(1).png",
    "</script><h1>x.png",
    "&lt;b&gt;.png",
    "\u202egnp.exe",
    "nul\x01line\nbreak.png",
]


class Parsed(html.parser.HTMLParser):
    """Tags, event handlers and addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.texts.append(data)


def written(out, **kwargs):
    return Parsed(page.write(out, **kwargs).read_text(encoding="utf-8"))


def test_the_page_shows_every_area_with_its_scores(tmp_path):
    result = some_masks(batch=2)
    committed(tmp_path, result, flags={"areas": [0.1, 0.3]})
    parsed = written(tmp_path)
    assert parsed.tags.count("article") == 2
    # Two of the picture itself, and two for each of its two areas.
    assert parsed.tags.count("img") == 2 * (2 + 2 * 2)
    text = " ".join(parsed.texts)
    assert f"{result.score_original[0]:.3g}" in text
    assert f"{result.score_binary[1, 1]:.3g}" in text
    assert "Each" in text or "region" in text


def test_the_page_needs_nothing_but_itself(tmp_path):
    committed(tmp_path, some_masks(batch=2))
    parsed = written(tmp_path)
    policy = dict(parsed.attributes)["content"]
    assert "content" in dict(parsed.attributes)
    text = (tmp_path / "report" / "index.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    links = [value for name, value in parsed.attributes if name in ("src", "href")]
    assert links
    assert all(value.startswith("data:") for value in links)


def test_names_from_outside_stay_text(tmp_path):
    result = some_masks(batch=len(HOSTILE))
    committed(tmp_path, result, names=sorted(HOSTILE))
    parsed = written(tmp_path)
    # One script and one heading, the page's own.
    assert parsed.tags.count("script") == 1
    assert parsed.tags.count("h1") == 1
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    shown = {value for name, value in parsed.attributes if name == "data-name"}
    plain = [name for name in HOSTILE if name.isprintable()]
    assert set(plain) < shown
    # Control characters and marks of direction are replaced, for they make a name lie.
    assert not any("\u202e" in name or "\n" in name for name in shown)


def test_many_images_give_a_selection_and_linked_pages(tmp_path):
    result = some_masks(batch=17)
    committed(tmp_path, result)
    # Six of seventeen: two each of the best, the worst and drawn ones.
    parsed = written(tmp_path, page_items=6)
    assert parsed.tags.count("article") == 6
    groups = [value for name, value in parsed.attributes if name == "data-group"]
    assert sorted(groups) == ["best"] * 2 + ["random"] * 2 + ["worst"] * 2
    pages = sorted(p.name for p in (tmp_path / "report").iterdir())
    assert pages == ["index.html", *(f"page-{i:04d}.html" for i in range(1, 4))]
    orders = []
    for name in pages[1:]:
        text = (tmp_path / "report" / name).read_text()
        orders += [int(i) for i in re.findall(r'data-order="(\d+)"', text)]
    # Page by page all seventeen are there, each once and in order.
    assert orders == list(range(17))
    # The effect by its definition: how far the score is from the floor, 1 for the whole picture.
    effects = result.score_binary - result.score_floor[:, None]
    effects = (effects / (result.score_original - result.score_floor)[:, None]).mean(1)
    chosen = dict(
        zip([int(v) for n, v in parsed.attributes if n == "data-order"], groups, strict=True)
    )
    worst = [i for i, group in chosen.items() if group == "worst"]
    best = [i for i, group in chosen.items() if group == "best"]
    assert set(worst) == set(np.argsort(effects)[:2].tolist())
    assert set(best) == set(np.argsort(effects)[-2:].tolist())


def test_values_that_are_missing_do_not_break_the_page(tmp_path):
    result = some_masks(batch=2)
    nan = np.full_like(result.score_binary, np.nan)
    broken = result._replace(score_binary=nan, status=np.full((2, 2), "nonfinite"))
    committed(tmp_path, broken)
    assert "nonfinite" in " ".join(written(tmp_path).texts)


def test_wrong_answers_and_searches_that_did_not_end_well_are_marked():
    row = {"evidence": {"answer": {"rank_original": 1}}, "status": "not_converged"}
    listed = {"flags": {"target": "csv"}}
    wrong, search = cards.marks([row, {**row, "status": "ok"}], listed)
    assert "another class scores higher" in wrong
    assert "1 of 2 regions" in search
    assert "--steps" in search
    # Without a list nobody knows what would be right.
    assert "wrong" not in "".join(cards.marks([row], {"flags": {"target": None}}))
    # Ranks are counted from 0.
    right = {"evidence": {"answer": {"rank_original": 0}}, "status": "ok"}
    assert list(cards.marks([right], listed)) == []
    for status in ("not_converged", "nonfinite", "interrupted"):
        (mark,) = cards.marks([{**right, "status": status}], listed)
        assert "ended with this status" not in mark


def test_channels_are_listed(tmp_path):
    channels = np.zeros((2, 1, 30), np.float32)
    channels[:, :, [3, 17]] = 1
    masks = some_masks(batch=2, areas=(2 / 30,))
    result = Channels(channels, (2,), *masks[3:])
    committed(tmp_path, result, method="channels", flags={"layer": "conv", "counts": [2]})
    assert "3, 17" in " ".join(written(tmp_path).texts)


def test_effect_under_deletion_is_what_goes():
    row = {"score_original": 10.0, "score_floor": 0.0, "score_binary": 1.0}
    # What deletion takes away: from 10 to 1 on a way of 10 to 0.
    assert cards.effect(row, delete=True) == pytest.approx(0.9)
    # A floor beside the score itself leaves nothing to divide by.
    assert cards.effect({**row, "score_floor": 9.9}, delete=True) is None
    assert cards.effect({**row, "score_binary": None}, delete=False) is None


def test_overlay_keeps_the_region_and_dims_the_rest():
    image = np.full((32, 48, 3), 204, np.uint8)
    mask = np.zeros((32, 48), np.float32)
    mask[8:24, 8:24] = 1
    drawn = pictures.overlay(image, mask, side=96).astype(int)
    assert drawn.shape == (64, 96, 3)
    # Inside nothing is changed; outside it is darker than half.
    np.testing.assert_array_equal(drawn[32, 32], 204)
    assert drawn[32, 80].max() < 128
    amber = np.abs(drawn - np.array(pictures.OUTLINE)).max(-1) < 40
    # An outline of 4 x 32 px, some pixels wide and softened at its edges.
    assert 100 < amber.sum() < 400


def test_what_was_shown_keeps_or_removes_the_region():
    image, removed = np.full((8, 8, 3), 255, np.uint8), np.zeros((8, 8, 3), np.uint8)
    mask = np.zeros((8, 8), np.float32)
    mask[:, :4] = 1
    kept = pictures.shown(image, removed, mask, delete=False, side=8)
    # White where kept, black where removed: the mask itself.
    np.testing.assert_array_equal(kept[..., 0], 255 * mask)
    gone = pictures.shown(image, removed, mask, delete=True, side=8)
    np.testing.assert_array_equal(gone[..., 0], 255 * (1 - mask))


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_page_without_a_complaint(tmp_path):
    committed(tmp_path / "run", some_masks(batch=3), names=HOSTILE[:3], flags={"areas": [0.1, 0.3]})
    index = page.write(tmp_path / "run")
    dom, log = opened(index, tmp_path / "profile")
    assert 'data-pictures="18/18"' in dom
    assert "CONSOLE" not in log
    assert ">3 pictures</output>" in dom
    dom, log = opened(index, tmp_path / "profile", "#sort=effect1:down&view=region&find=alert")
    assert "CONSOLE" not in log
    # The state of a page is in its address, so that a link shows what its sender saw.
    assert 'data-view="region"' in dom
    effects = [float(value) for value in re.findall(r' data-effect1="([^"]*)"', dom)]
    assert effects == sorted(effects, reverse=True) != sorted(effects)


def opened(path, profile, state=""):
    """Returns the page after its script ran, and what the browser logged."""
    ran = subprocess.run(
        [
            BROWSER,
            *["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
            *["--disable-background-networking", "--disable-component-update", "--disable-sync"],
            f"--user-data-dir={profile}",
            "--enable-logging=stderr",
            # The browser's own clock, which runs ahead as fast as scripts do: no waiting.
            "--virtual-time-budget=5000",
            "--dump-dom",
            f"file://{path.resolve()}{state}",
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return ran.stdout, ran.stderr
