import json
import re
import sys

import jax
import numpy as np
import PIL.Image
import pytest

import gan_dissect
from gan_dissect.nets import boundaries
from launch import walk
from tests.launch import toygan
from tests.launch.test_page import BROWSER, Parsed, opened

TOY = (
    "--generator=tests.launch.toygan:load",
    "--concepts=tests.launch.toygan:scores",
    "--walks=3",
    "--frames=5",
    "--fit_samples=200",
    "--controls=2",
)


def rows(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.fixture
def finished(launched, tmp_path):
    out = tmp_path / "run"
    code, err = launched(walk, *TOY, "--direction=attribute:redness", f"--out={out}")
    assert code == 0, err
    return out


@pytest.mark.slow
def test_an_attribute_walk_follows_the_number_that_decides_it(finished):
    normal = np.load(finished / "direction.npy")[0]
    # Red is drawn where the first number of the latent is above 0.
    # Other numbers shade a little too.
    assert np.abs(normal).argmax() == 0
    assert normal[0] > 0.6
    facts = json.loads((finished / "run.json").read_text())["model"]["direction"]
    assert facts["auc_low"] <= facts["auc_test"] <= 1
    found = rows(finished)
    assert len(found) == 3 * 5
    red = np.array([r["scores"]["redness"] for r in found]).reshape(3, 5)
    assert (red[:, -1] >= red[:, 0]).all()
    assert [r["position"] for r in found[:5]] == [-3, -1.5, 0, 1.5, 3]
    with PIL.Image.open(finished / "walks" / "000000.png") as strip:
        assert strip.size == (5 * toygan.SIDE + 4 * 4, toygan.SIDE)
    with PIL.Image.open(finished / "walks" / "000002.webp") as animation:
        assert 2 <= animation.n_frames <= 8  # equal frames are one
        assert animation.size == (toygan.SIDE, toygan.SIDE)


def test_a_walk_from_a_file_is_the_library_s(launched, tmp_path):
    # Along one number of the latent, so that each step is known without a computation.
    normal = np.eye(toygan.LATENT)[2]
    boundaries.write_boundary(tmp_path / "b.npy", normal)
    out = tmp_path / "out"
    arguments = [f"--direction={tmp_path}/b.npy", "--from=0", "--to=2", "--animation=gif"]
    code, err = launched(walk, *TOY, *arguments, f"--out={out}")
    assert code == 0, err
    generator = toygan.load()
    latent = np.asarray(gan_dissect.sample(generator, jax.random.key(0), 3))[1]
    # Walk 1 of the launcher begins at sample 1 of its seed.
    walked = gan_dissect.walk(generator, latent, normal, steps=5, start=0, stop=2)
    with np.load(next((out / "shards").glob("000001*.npz"))) as stored:
        np.testing.assert_array_equal(stored["latents"], walked.latents)
        expected = np.asarray(walked.outputs["image"])[..., 0].mean((1, 2))
        # A mean by JAX and one by NumPy: sums in another order.
        np.testing.assert_allclose(stored["scores"][:, 0], expected, rtol=1e-5)
    assert (out / "walks" / "000001.gif").is_file()
    # The same command again finds everything done and changes nothing.
    before = (out / "results.jsonl").read_bytes()
    code, err = launched(walk, *TOY, *arguments, f"--out={out}")
    assert code == 0, err
    assert (out / "results.jsonl").read_bytes() == before


def test_a_way_through_latents(launched, tmp_path):
    """Drawn for each walk, or the one of a file; the frames are the library's."""
    drawn = np.random.default_rng(0).standard_normal((3, toygan.LATENT)).astype(np.float32)
    np.save(tmp_path / "stops.npy", drawn)
    generator = toygan.load()
    for name, walks in ((f"through:{tmp_path}/stops.npy", 1), ("through:3", 3)):
        out = tmp_path / f"out{walks}"
        code, err = launched(walk, *TOY, f"--direction={name}", f"--out={out}")
        assert code == 0, err
        shards = sorted((out / "shards").glob("*.npz"))
        assert len(shards) == walks
        latents = []
        for shard in shards:
            with np.load(shard) as stored:
                # Five frames of three latents: each second one is a latent itself.
                latents.append(stored["latents"][::2])
                way = gan_dissect.walks.through(generator, latents[-1], frames=5)
                np.testing.assert_allclose(stored["latents"], way.latents, rtol=1e-5)
                assert stored["others"].shape[0] == 0
        if walks == 1:
            np.testing.assert_array_equal(latents[0], drawn)
        else:
            # No two walks pass the same latents.
            assert len(np.unique(np.concatenate(latents), axis=0)) == 9
        assert [r["position"] for r in rows(out)[:5]] == [0, 0.5, 1, 1.5, 2]
        assert not (out / "direction.npy").exists()
        page = (out / "report" / "index.html").read_text()
        assert "A walk through <em>3 latents</em>" in page
        assert "random directions</li>" not in page


def test_the_strongest_component_of_a_layer(launched, tmp_path):
    code, err = launched(
        walk, *TOY, "--direction=ganspace:2", "--layer=units", f"--out={tmp_path}/out"
    )
    assert code == 0, err
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["model"]["direction"]["layer"] == "units"
    # The share of variance of one component among several.
    assert 0 < run["model"]["direction"]["share"] < 1


STYLES = ("--generator=tests.launch.toygan:stylegan", "--walks=2", "--frames=3", "--fit_samples=60")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "layers"),
    [
        (["--direction=sefa:1"], range(6)),
        (["--direction=sefa:2", "--layers=0-1,4"], [0, 1, 4]),
        (["--direction=ganspace:1", "--layers=2"], [2]),
    ],
)
def test_walks_in_the_layers_of_a_stylegan(launched, tmp_path, arguments, layers):
    code, err = launched(walk, *STYLES, *arguments, f"--out={tmp_path}/out")
    assert code == 0, err
    normal = np.load(tmp_path / "out" / "direction.npy")[0]
    with np.load(next((tmp_path / "out" / "shards").glob("000001*.npz"))) as stored:
        moved = stored["latents"][2] - stored["latents"][1]
    # 3 from frame to frame: from -3 to 3 in three frames.
    want = np.zeros((6, 16))
    want[list(layers)] = 3 * normal
    np.testing.assert_allclose(moved, want, atol=1e-4)


@pytest.mark.slow
def test_a_rare_attribute_and_missing_scores(launched, tmp_path):
    concepts = "--concepts=tests.launch.toygan:rare"
    rest = [a for a in TOY if not a.startswith("--concepts")]
    for name in ("rare", "gaps"):
        out = tmp_path / name
        code, err = launched(walk, *rest, concepts, f"--direction=attribute:{name}", f"--out={out}")
        assert code == 0, err
        facts = json.loads((out / "run.json").read_text())["model"]["direction"]
        # A picture without a score teaches nothing, and is counted as left out.
        assert facts["scored"] + facts["left_out"] == 200
        assert (facts["left_out"] > 0) == (name == "gaps")
        assert facts["extremes"] != 0.1 or name == "gaps"
        assert "nan" not in (out / "report" / "index.html").read_text().lower().split("<main>")[1]


def test_an_mp4_where_there_is_ffmpeg(launched, tmp_path, monkeypatch):
    arguments = [*TOY, "--direction=attribute:redness", "--animation=mp4"]
    # A PATH with nothing on it.
    monkeypatch.setenv("PATH", str(tmp_path))
    code, err = launched(walk, *arguments, f"--out={tmp_path}/out")
    assert code == 2
    assert "there is no ffmpeg on the PATH" in err
    fake = tmp_path / "ffmpeg"
    # Counts the bytes of the frames that it is given into the file that it is asked for.
    fake.write_text(
        f'#!{sys.executable}\nimport sys\nopen(sys.argv[-1], "w").write(" '
        '".join(sys.argv) + " " + str(len(sys.stdin.buffer.read())))\n'
    )
    fake.chmod(0o755)
    code, err = launched(walk, *arguments, f"--out={tmp_path}/out")
    assert code == 0, err
    words = (tmp_path / "out" / "walks" / "000001.mp4").read_text()
    assert "-pix_fmt rgb24 -s 16x16" in words
    # Five frames there and three back: the ends are not shown twice.
    assert words.endswith(f" {8 * 16 * 16 * 3}")  # there and back


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--direction=sefa:1", "--layers=5-2"], "numbers and ranges of layers"),
        (["--direction=attribute:redness", "--layers=1"], "one for all layers"),
        (["--direction=other.npy"], "for latents of size 4, the generator's have 6"),
        (["--direction=pickled.npy"], "pickled files are never opened"),
        (["--direction=none.npy"], "there is no file"),
        (["--direction=attribute:rednes"], "nearest is 'redness'"),
        (["--direction=sefa:1", "--layer=units"], "affine"),
        (["--direction=ganspace:0"], "counted from 1"),
        (["--direction=through:1"], "at least 2 latents"),
        (["--direction=through:9"], "got 9 and --frames=5"),
        (["--direction=through:here"], "as in through:4"),
        (["--direction=through:none.npy"], "there is no file"),
        (["--direction=through:other.npy"], "must hold latents [P, 6]"),
        (["--direction=through:pickled.npy"], "not an array of numbers"),
        (["--direction=through:3", "--to=2"], "--to is for a direction"),
        (["--direction=ganspace:999", "--layer=units"], "--direction=ganspace:999: k must be"),
        (["--direction=wide.npy", "--generator=tests.launch.toygan:load_tree"], "one vector"),
        (["--generator=dcgan", "--direction=wide.npy"], "--weights is missing"),
        (["--generator_options=x", "--direction=wide.npy"], "not JSON"),
        (
            ["--concepts=tests.launch.toygan:other_size", "--direction=attribute:wide"],
            "resize inside",
        ),
        (["--direction=ganspace:1", "--layer=nothing"], "has no such layer; its layers:"),
        (["--direction=up"], "expected a .npy, .npz or .pt file"),
        ([], "--direction is missing"),
        (["--direction=sefa:1", "--from=3", "--to=1"], "--from must be below --to"),
    ],
)
def test_what_cannot_be_used_ends_with_one_line(launched, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    boundaries.write_boundary("other.npy", np.ones(4))
    boundaries.write_boundary("wide.npy", np.ones(6))
    # An object array, which NumPy reads by unpickling.
    np.save("pickled.npy", np.array({"boundary": 1}, object), allow_pickle=True)
    given = {a.partition("=")[0] for a in arguments}
    rest = [a for a in TOY if a.partition("=")[0] not in given]
    code, err = launched(walk, *rest, *arguments, "--out=out")
    assert code == 2
    errors = [line for line in err.splitlines() if not re.match(r"[IW]\d{4} ", line)]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert words in errors[0]


@pytest.mark.slow
def test_the_page_shows_curves_and_strips(finished, tmp_path):
    page = finished / "report" / "index.html"
    parsed = Parsed(page.read_text())
    # Two attributes, each with a line for every walk and one more.
    assert parsed.tags.count("polyline") == 2 * (3 + 1)
    assert parsed.tags.count("img") == 3
    assert "AUC" in " ".join(parsed.texts)
    if BROWSER:
        dom, log = opened(page, tmp_path / "profile")
        assert 'data-pictures="3/3"' in dom
        assert "CONSOLE" not in log


def test_shares_together_are_the_whole(launched, finished, tmp_path):
    out = tmp_path / "parts"
    arguments = [*TOY, "--direction=attribute:redness", f"--out={out}"]
    # The last share first: whoever finds all shards there writes the page.
    for k in (1, 0):
        code, err = launched(walk, *arguments, f"--shard={k}/2")
        assert code == 0, err
        assert (out / "report" / "index.html").exists() == (k == 0)
    for name in ("results.jsonl", "errors.jsonl", "direction.npy", "report/index.html"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()
    code, err = launched(walk, *arguments, "--weights_sha256=00")
    assert code == 2
    assert "--weights_sha256 needs --weights=FILE" in err
