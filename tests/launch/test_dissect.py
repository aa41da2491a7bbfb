import json
import pathlib
import re

import jax
import numpy as np
import PIL.Image
import pytest

import gan_dissect
from gan_dissect import counts
from launch import dissect, generators
from launch.job import commit
from launch.jobs.dissect import page, work
from tests.launch import toygan
from tests.launch.test_convert import Evil
from tests.launch.test_page import BROWSER, Parsed, opened
from tests.weights.test_torchfile import dumps

TOY = (
    "--generator=tests.launch.toygan:load",
    "--concepts=tests.launch.toygan:concepts",
    "--layer=units",
    # Three shards of the fixture's 48, the last of them half full.
    "--samples=120",
    "--effect_samples=32",
    "--units=1",
    "--controls=5",
)


@pytest.fixture
def small(monkeypatch):
    """Shards of 48 latents, so that a short run has several."""
    monkeypatch.setattr(work, "SHARD", 48)


@pytest.fixture
def finished(launched, small, tmp_path):
    out = tmp_path / "run"
    code, err = launched(dissect, *TOY, f"--out={out}")
    assert code == 0, err
    return out


def rows(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_run_is_the_library_s_dissection(finished):
    table = gan_dissect.dissect(
        toygan.load(),
        layer="units",
        concepts=toygan.concepts(),
        samples=120,
        key=jax.random.key(0),
        batch_size=16,
    )
    _, arrays = page.last(finished)
    np.testing.assert_array_equal(arrays["table.iou"], table.iou)
    np.testing.assert_array_equal(arrays["table.thresholds"], table.thresholds)
    np.testing.assert_array_equal(arrays["table.top_indices"], table.top_indices)
    found = rows(finished)
    assert [r["unit"] for r in found if r["kind"] == "unit"] == list(range(toygan.UNITS))
    assert found[3]["concept"] == "red"
    # The row is rounded for a reader; the arrays above are compared bit for bit.
    assert found[3]["iou"] == pytest.approx(table.iou[3, 0])
    effects = {(r["concept"], r["state"]): r for r in found if r["kind"] == "effect"}
    red = effects["red", "off"]
    # Unit 3 alone draws red: off, nothing of it is left, and nothing else changes.
    assert red["units"] == [3]
    assert red["effect"]["after"] == 0
    assert red["effect"]["change_high"] < 0
    assert red["leakage"]["light"]["change"] == 0
    assert effects["red", "on"]["effect"]["after"] == 1
    shards = list((finished / "shards").glob("*.npz"))
    # Three passes of three shards, and one of the effects.
    assert len(shards) == 3 * 3 + 1


@pytest.mark.slow
def test_a_stopped_run_continues_and_ends_the_same(
    launched, small, finished, tmp_path, monkeypatch
):
    real, calls = counts.count, []

    def counted(*args, **more):
        calls.append(more["samples"])
        # In the second shard of the count, when the first is committed.
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(counts, "count", counted)
    out = tmp_path / "again"
    code, err = launched(dissect, *TOY, f"--out={out}")
    # 128 and the number of SIGINT, as a shell reports it.
    assert code == 130
    assert "continues" in err
    code, err = launched(dissect, *TOY, f"--out={out}")
    assert code == 0, err
    # The shard that was under way is counted again, the one before is not.
    assert calls == [(0, 48), (48, 96), (48, 96), (96, 120)]
    assert rows(out) == rows(finished)
    # The shard of the effects, which is computed from all of the others.
    before = commit.read_shard(out / "shards" / "000009")[0]["npz_sha256"]
    assert before == commit.read_shard(finished / "shards" / "000009")[0]["npz_sha256"]
    code, err = launched(dissect, *TOY, "--seed=1", f"--out={out}")
    assert code == 2
    assert "--seed (0 there, 1 now)" in err


def test_masks_of_people_are_concepts_of_their_samples(launched, tmp_path):
    key, folder = jax.random.key(0), tmp_path / "masks"
    # The samples of the launcher's own seed, so that mask i belongs to its sample i.
    drawn = toygan.load()(gan_dissect.sample(toygan.load(), key, 20))
    red = np.asarray(toygan.concepts()(drawn))[..., 0]
    (folder / "mine").mkdir(parents=True)
    for i, mask in enumerate(red):
        PIL.Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "mine" / f"{i:04d}.png")
    arguments = [*TOY[:1], "--layer=units", "--samples=20", f"--concepts={folder}"]
    code, err = launched(dissect, *arguments, f"--out={tmp_path}/out")
    assert code == 0, err
    table = gan_dissect.dissect(
        toygan.load(), layer="units", concepts=toygan.concepts(), samples=20, key=key, batch_size=16
    )
    _, arrays = page.last(tmp_path / "out")
    np.testing.assert_array_equal(arrays["table.iou"][:, 0], table.iou[:, 0])
    # One mask of another size among good ones: it must be named, not stretched.
    PIL.Image.new("L", (9, 9)).save(folder / "mine" / "0003.png")
    code, err = launched(dissect, *arguments, f"--out={tmp_path}/other")
    assert code == 2
    assert "9 x 9 px" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layer=unit"], "has no such layer; its layers:"),
        (["--generator=tile_dcgan"], "--weights is missing"),
        (["--generator=tile_dcgan", "--weights=none.safetensors"], "no such file"),
        (["--generator=tests.launch.toygan:nothing"], "no function 'nothing'"),
        (["--generator=tests.launch.toygan:concepts"], "expected a gan_dissect.Generator"),
        (["--concepts=tests.launch.toygan:other_size"], "resize inside the concept"),
        (["--concepts=tests.launch.toygan:scores"], "scores of whole pictures"),
        (["--concepts=labels"], "has no label_names"),
        (["--concepts=nowhere"], "there is no such folder"),
        (["--concepts=color:notacolour"], "'notacolour' is no colour"),
        (["--quantile=1"], "--quantile must be between 0 and 1"),
        (["--units=0"], "--units"),
        (["--units=13"], "--units=13: layer units has units 0 to 11, 12 in all"),
        (["--generator=tile_dcgann"], "--weights is missing"),
        (["--generator=tile_dcgann", "--weights=w.npz"], "did you mean tile_dcgan"),
        (["--generator=tile_dcgan", "--weights=evil.pkl"], "pickled checkpoints are never opened"),
        (["--generator=tile_dcgan", "--weights=evil.pth"], "names builtins.eval"),
        (["--generator=tile_dcgan", "--weights=w.npz"], "weights do not fit tile_dcgan"),
        (["--generator=stylegan", "--weights=w.npz"], "weights do not fit stylegan"),
        (["--generator=biggan_deep", "--weights=w.npz"], "weights do not fit biggan_deep"),
        (["--generator_options={"], "not JSON"),
        (["--generator_options=[1]"], "expected an object"),
        (['--generator_options={"crop": [2, 2]}'], "takes none"),
        (
            ["--generator=dcgan", "--weights=w.npz", '--generator_options={"crop": [2, 2]}'],
            "dcgan has no option 'crop'; its options:",
        ),
        (
            ["--generator=dcgan", "--weights=w.npz", '--generator_options={"strides": 2}'],
            "--generator_options=",
        ),
    ],
)
def test_what_cannot_be_used_ends_with_one_line(launched, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    for name in ("evil.pkl", "evil.pth"):
        pathlib.Path(name).write_bytes(dumps({"w": Evil()}, 4))
    # Tensors of a shape that no generator here has, under a name that one of them has.
    np.savez("w.npz", **{"main.0.weight": np.zeros((2, 2, 2, 2), np.float32)})
    given = {a.partition("=")[0] for a in arguments}
    rest = [a for a in TOY if a.partition("=")[0] not in given]
    code, err = launched(dissect, *arguments, *rest, f"--out={tmp_path}/out")
    assert code == 2
    # Lines of the log come before the one that says what is wrong.
    errors = [line for line in err.splitlines() if not re.match(r"[IW]\d{4} ", line)]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert words in errors[0]
    # Nothing was begun, so the corrected command may use the same folder.
    assert not (tmp_path / "out" / "run.json").exists()


def test_colours_by_name_and_number():
    assert generators.colours("white,#336699") == {
        # 0x33 / 255 is 0.2 exactly; the others are its multiples.
        "white": (1.0, 1.0, 1.0),
        "#336699": (0.2, 0.4, 0.6),
    }


def test_the_page_has_units_edits_and_leakage(finished, tmp_path):
    page = finished / "report" / "index.html"
    parsed = Parsed(page.read_text())
    assert parsed.tags.count("article") == 2
    text = " ".join(parsed.texts)
    for words in ("unit 3", "Switched off and on", "leakage", "5 random sets"):
        assert words in text
    links = [value for name, value in parsed.attributes if name in ("src", "href")]
    assert all(value.startswith("data:") for value in links)
    if BROWSER:
        dom, log = opened(page, tmp_path / "profile")
        assert 'data-pictures="8/8"' in dom
        assert "CONSOLE" not in log


def test_shares_together_are_the_whole(launched, small, finished, tmp_path):
    out = tmp_path / "parts"
    # Out of order: no share may rely on another being there before it.
    for k in (1, 0, 2):
        code, err = launched(dissect, *TOY, f"--out={out}", f"--shard={k}/3")
        assert code == 0, err
    # Shard 9 of 10, the effects, is for process 0; whoever came first did what the passes need.
    for name in ("results.jsonl", "errors.jsonl", "manifest.jsonl", "report/index.html"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()
    code, err = launched(dissect, *TOY, f"--out={out}", "--weights_sha256=00")
    assert code == 2
    assert "--weights_sha256 needs --weights=FILE" in err
    code, err = launched(dissect, *TOY, f"--out={out}", "--process_id=1")
    assert code == 2
    assert "need --multiprocess" in err
