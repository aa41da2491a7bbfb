import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import perturb
from launch import masks as launcher
from launch import models, results
from perturb import methods
from tests.api import snapshot
from tests.launch import toy as toy_models


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def checked(toy):
    """The arguments with the evidence that a run has by default."""
    return [a for a in toy if "evidence" not in a]


@pytest.fixture
def finished(launch_masks, photos, toy, tmp_path):
    """A finished run over the four pictures and one broken file."""
    # The first bytes of a JPEG and nothing of one: found by name, refused by the decoder.
    (photos / "e_broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really")
    out = tmp_path / "out"
    arguments = [*checked(toy), f"--images={photos}", f"--out={out}"]
    code, err = launch_masks(*arguments)
    assert code == 0, err
    return out


def test_a_run_leaves_everything_that_is_promised(finished):
    run = json.loads((finished / "run.json").read_text())
    assert run["flags"]["areas"] == [0.1, 0.2]
    assert run["flags"]["operator"] == "blur+mean+noise"
    assert len(run["model"]["fingerprint"]) == 64
    assert run["versions"]["jax"]
    assert [row["path"] for row in read_lines(finished / "manifest.jsonl")] == [
        "a_red.png",
        "b_green.png",
        "c_blue.png",
        "d_red.png",
        "e_broken.jpg",
    ]
    rows = read_lines(finished / "results.jsonl")
    assert len(rows) == 8
    assert [row["target_name"] for row in rows[::2]] == ["red", "green", "blue", "red"]
    for row in rows:
        # Areas are met to a pixel of 32 x 32.
        assert row["achieved_area"] == pytest.approx(row["area"], abs=1 / 1024)
        assert row["score_original"] > row["score_floor"]
        assert row["status"] in ("ok", "not_converged")
        # The whole picture, whose height tells the four apart.
        assert row["crop"] == [0, 0, 48, 40 + 4 * "abcd".index(row["image"][0])]
        found = row["evidence"]
        assert found["floor"]["blur"] == row["score_floor"]
        assert len(found["floor"]) == 7  # three that the mask was sought with, four that it was not
        assert len(found["transfer"]) == 4
        assert found["verdict"] in ("holds", "doubtful", "fails")
        assert 0 <= found["control_percentile"] <= 100
        assert found["reasons"]
        assert found["rival"]["target_name"] != row["target_name"]
    text = (finished / "report" / "index.html").read_text()
    assert text.count("<details") == 8
    assert "shifted copies of itself" in text
    assert (finished / "report" / "index.html").stat().st_size > 20_000


def test_one_broken_file_among_good_ones_is_a_row(finished):
    (error,) = read_lines(finished / "errors.jsonl")
    assert error["id"].startswith("e_broken.jpg@")
    assert error["stage"] == "decode"
    assert len(results.load(finished)["ids"]) == 4


def test_the_same_pixels_in_other_files_have_the_same_masks_and_verdicts(
    launch_masks, photos, toy, tmp_path
):
    """The key follows the decoded picture: neither name, format nor an opaque fourth channel."""
    folder, out = tmp_path / "same", tmp_path / "out"
    folder.mkdir()
    with PIL.Image.open(photos / "a_red.png") as picture:
        plain = picture.convert("RGB")
    plain.save(folder / "a.png")
    plain.convert("RGBA").save(folder / "b.png")
    plain.save(folder / "c.bmp")
    plain.save(folder / "d.tiff")
    code, err = launch_masks(*checked(toy), f"--images={folder}", f"--out={out}")
    assert code == 0, err
    got = results.load(out)
    assert len(got["masks"]) == 4
    for mask in got["masks"][1:]:
        np.testing.assert_array_equal(mask, got["masks"][0])
    found = [row["evidence"] for row in got["rows"]]
    assert found[:2] == found[2:4] == found[4:6] == found[6:]


@pytest.mark.slow
def test_results_are_those_of_the_library(finished, photos):
    got = results.load(finished)
    model = toy_models.load()
    again = {
        name: model.geometry.apply(PIL.Image.open(photos / name))[0] for name in ("a_red.png",)
    }
    assert got["masks"].shape == (4, 2, 32, 32)
    assert got["targets"].tolist() == [0, 1, 2, 0]
    for i, row in enumerate(got["rows"][:2]):
        seen = perturb.operators.Blur()
        image = jnp.asarray(again["a_red.png"])
        # Recomputed from the mask alone, without anything of the solver.
        mask = jnp.asarray((got["masks"][0, i] > 0.5).astype(np.float32))
        outputs = model(seen.apply(seen.prepare(image, None), mask)[None])[0]
        chance = float(jax.nn.softmax(outputs)[0])
        # Other programs, which sum in another order.
        assert row["probability_binary"] == pytest.approx(chance, rel=1e-4)
        assert row["score_binary"] == pytest.approx(np.log(chance + 0.02), rel=1e-3)
        # The red square is 14 of 48 x 14 of 40 px; the region lies on it.
        # Squashed to 32 x 32 that is rows 8 to 19, columns 4 to 13.
        square = got["masks"][0, i][8:20, 4:14] > 0.5
        assert square.sum() > 0.6 * min(square.size, (got["masks"][0, i] > 0.5).sum())


def test_results_do_not_depend_on_neighbours_or_place(
    launch_masks, photos, toy, finished, tmp_path
):
    (tmp_path / "list.csv").write_text("path,target\nphotos/c_blue.png,2\n")
    out = tmp_path / "alone"
    code, err = launch_masks(*toy, f"--images={tmp_path}/list.csv", f"--out={out}")
    assert code == 0, err
    alone, all_ = results.load(out), results.load(finished)
    # Bit for bit: a neighbour in the batch must not reach into a mask.
    np.testing.assert_array_equal(alone["masks"][0], all_["masks"][2])
    assert alone["rows"][0]["score_binary"] == all_["rows"][4]["score_binary"]


@pytest.mark.slow
def test_a_repeated_command_continues_and_ends_the_same(
    launch_masks, photos, toy, tmp_path, monkeypatch
):
    for i in range(16):  # with the four of the fixture: two shards
        colour = (250, 10 * i, 0)
        PIL.Image.new("RGB", (33, 33), colour).save(photos / f"f{i:02d}.png")
    arguments = [*toy, f"--images={photos}"]
    whole = tmp_path / "whole"
    assert launch_masks(*arguments, f"--out={whole}")[0] == 0
    out = tmp_path / "stopped"
    calls = []
    real = methods.get("extremal")

    @functools.wraps(real)
    def counted(model, images, *rest, **more):
        calls.append(len(images))
        if len(calls) == 2:
            # The first shard is committed by then, the second is not.
            raise KeyboardInterrupt
        return real(model, images, *rest, **more)

    monkeypatch.setitem(methods._NAMED, "extremal", counted)
    code, err = launch_masks(*arguments, f"--out={out}")
    # 128 and the number of SIGINT, as a shell reports it.
    assert code == 130
    assert "continues" in err
    assert len(results.load(out)["ids"]) == 16
    code, err = launch_masks(*arguments, f"--out={out}")
    assert code == 0, err
    # 16, then 4 that were interrupted, then the same 4: nothing is done twice.
    assert calls == [16, 4, 4]
    ended, straight = files(out), files(whole)
    assert set(ended) == set(straight)
    differing = {name for name in ended if ended[name] != straight[name]}
    # Only the record of the command names the folder that it was given.
    assert differing <= {"run.json"}
    assert launch_masks(*arguments, f"--out={out}")[0] == 0
    # A third time everything is there.
    assert calls == [16, 4, 4]


def test_another_configuration_in_the_same_folder_is_refused(launch_masks, finished, photos, toy):
    before = files(finished)
    for changed, words in [
        ([*checked(toy), f"--images={photos}", "--seed=1"], "--seed (0 there, 1 now)"),
        ([*toy, f"--images={photos}/*_red.png"], "the pictures"),
        ([*toy, f"--images={photos}", "--game=delete"], "--game"),
    ]:
        code, err = launch_masks(*changed, f"--out={finished}")
        assert code == 2
        assert words in err
        assert err.splitlines()[-1].startswith("error: --out=")
    # A command that is refused has changed nothing.
    assert files(finished) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--images={photos}", "--target=4"], "below the model's 4 classes"),
        (["--images={photos}", "--target=cat"], "--target=cat"),
        (["--images={photos}", "--target=csv"], "not a list"),
        (["--images={photos}", "--areas=0.001"], "fewer than 4 px"),
        (["--images={photos}", "--reward=loudness"], "reward"),
        (["--images={photos}", "--operator=blur+smudge"], "operator must be one of blur, fade"),
        (["--images={photos}", "--model=no_such_net"], "no_such_net"),
        (["--images={photos}", "--model=no.such.module:load"], "cannot import"),
        (["--images={photos}", "--model=tests.launch.toy:nothing"], "no function 'nothing'"),
        (["--images={photos}", "--model=tests.launch.toy:raises"], "no such bucket"),
        (["--images={photos}", "--model=tests.launch.toy:not_a_model"], "returned int"),
        (["--images={photos}", "--model=tests.launch.toy:broken"], "NaN"),
        (["--images={photos}", "--weights={tmp}/none.npy"], "none.npy"),
        (["--images={photos}", "--class_names={tmp}/three"], "4 classes but 3 class names"),
        (["--images={photos}", "--class_names={tmp}/none"], "none"),
        (["--images={photos}", "--parity={tmp}/parity.npz"], "differs from its source"),
        (["--images={photos}", "--parity={tmp}/three"], "--parity"),
        (["--images={tmp}/empty"], "no picture"),
        (["--images={tmp}/nowhere"], "no such folder"),
        (["--images={tmp}/only_broken"], "none of the 2 images could be used"),
        (["--images={photos}", "--out={tmp}/three/out"], "three"),
    ],
)
def test_bad_input_ends_with_one_line_and_code_2(
    launch_masks, photos, toy, tmp_path, arguments, words
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "three").write_text("a\nb\nc\n")
    (tmp_path / "only_broken").mkdir()
    for name in ("1.png", "2.png"):
        # Known by name as PNGs, and nothing after the first four bytes.
        (tmp_path / "only_broken" / name).write_bytes(b"\x89PNG")
    x = np.random.default_rng(0).uniform(size=(3, 32, 32, 3)).astype(np.float32)
    # Ten per cent off, far above any rounding.
    y = 1.1 * np.asarray(toy_models.load()(x))
    np.savez(tmp_path / "parity.npz", x=x, y=y)
    filled = [a.format(photos=photos, tmp=tmp_path) for a in arguments]
    given = {a.split("=")[0] for a in filled}
    defaults = [a for a in [*toy, f"--out={tmp_path}/out"] if a.split("=")[0] not in given]
    code, err = launch_masks(*defaults, *filled)
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert "Traceback" not in err


def test_targets_of_a_list_and_one_that_is_out_of_range(launch_masks, photos, toy, tmp_path):
    (photos / "list.csv").write_text(
        "path,target\na_red.png,1\na_red.png,3\nb_green.png,9\nx.png,0\n"
    )
    code, err = launch_masks(*toy, f"--images={photos}/list.csv", f"--out={tmp_path}/out")
    assert code == 0, err
    assert results.load(tmp_path / "out")["targets"].tolist() == [1, 3]
    stages = {e["id"].split("@")[0]: e["stage"] for e in read_lines(tmp_path / "out/errors.jsonl")}
    assert stages == {"b_green.png": "target", "x.png": "read"}


@pytest.mark.slow
def test_pictures_of_several_sizes(launch_masks, photos, instant, tmp_path):
    arguments = ["--model=tests.launch.toy:any_size", "--steps=2", "--areas=0.2", "--evidence=none"]
    code, err = launch_masks(*arguments, f"--images={photos}", f"--out={tmp_path}/out")
    assert code == 0, err
    found = {
        item["id"].split("@")[0]: item["masks"].shape for item in results.iter(tmp_path / "out")
    }
    assert found == {
        "a_red.png": (1, 40, 48),
        "b_green.png": (1, 44, 48),
        "c_blue.png": (1, 48, 48),
        "d_red.png": (1, 52, 48),
    }


def test_weights_and_names_of_the_user(launch_masks, photos, toy, instant, tmp_path):
    # Only blue counts, whatever the picture shows: the answer tells whose weights were read.
    np.save(tmp_path / "w.npy", np.array([0, 0, 1, 0], np.float32))
    (tmp_path / "names.json").write_text(
        '{"0": "r", "1": ["n1", "g"], "2": {"name": "b"}, "3": "w"}'
    )
    arguments = [*toy, f"--images={photos}/a_red.png", f"--weights={tmp_path}/w.npy"]
    arguments += [f"--class_names={tmp_path}/names.json", f"--out={tmp_path}/out"]
    code, err = launch_masks(*arguments)
    assert code == 0, err
    assert {row["target_name"] for row in read_lines(tmp_path / "out/results.jsonl")} == {"b"}
    np.save(tmp_path / "w.npy", np.array([0, 1, 0, 0], np.float32))
    code, err = launch_masks(*arguments)
    assert code == 2
    assert "fingerprint" in err


def test_the_fingerprint_tells_weights_apart():
    one = toy_models.load()
    assert models.fingerprint(one) == models.fingerprint(toy_models.load())
    # The same numbers in another tree: names belong to the fingerprint.
    swapped = perturb.Model(one.apply, {"b": one.variables})
    other = perturb.Model(one.apply, one.variables.at[0].set(2.0))
    assert len({models.fingerprint(m) for m in (one, swapped, other)}) == 3


@pytest.mark.parametrize(
    ("name", "text"),
    [("names.json", "{}x"), ("names.json", '{"1": "a"}'), ("names.json", "3")],
)
def test_class_name_files_that_are_none(tmp_path, name, text):
    path = pathlib.Path(tmp_path, name)
    path.write_text(text)
    with pytest.raises(ValueError, match="--class_names"):
        models.class_names(str(path))


@pytest.mark.slow
def test_meaningful_masks_have_the_area_they_reach(launch_masks, photos, toy, tmp_path):
    arguments = [a for a in toy if "areas" not in a]
    code, err = launch_masks(
        *arguments, f"--images={photos}/*_red.png", "--method=meaningful", f"--out={tmp_path}/out"
    )
    assert code == 0, err
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["flags"]["game"] == "delete"
    assert run["flags"]["reward"] == "probability"
    got = results.load(tmp_path / "out")
    assert got["masks"].shape == (2, 1, 32, 32)
    # Continuous masks: their area is what is above one half, not what was asked for.
    np.testing.assert_allclose(got["areas"], (got["masks"] > 0.5).mean((2, 3)), atol=1e-6)
    text = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "without which the answer is lost" in text


@pytest.mark.slow
def test_of_several_areas_the_first_that_suffices(launch_masks, photos, toy, tmp_path):
    out = tmp_path / "out"
    code, err = launch_masks(
        *[a for a in checked(toy) if "areas" not in a],
        f"--images={photos}",
        "--method=sufficient",
        f"--out={out}",
    )
    assert code == 0, err
    run = json.loads((out / "run.json").read_text())
    # The library's own list of areas, and the fills of its search.
    assert run["flags"]["areas"] == [0.05, 0.1, 0.2, 0.3, 0.5]
    assert run["flags"]["operator"] == "blur+mean+noise"
    got = results.load(out)
    assert got["masks"].shape == (4, 1, 32, 32)
    assert got["areas"].shape == (4, 1)
    np.testing.assert_allclose(got["areas"], got["achieved_area"], atol=1e-3)
    for row in got["rows"]:
        answered = row["evidence"]["answer"]["answered"]
        # Where none is enough it is the largest.
        assert row["area"] == pytest.approx(0.5) or (answered["blur"] and answered["mean"])
        assert round(row["area"], 6) in run["flags"]["areas"]
    text = (out / "report" / "index.html").read_text()
    assert "it is the first that is enough" in text


def test_operators_in_turn_are_all_named_in_the_evidence(
    launch_masks, photos, toy, instant, tmp_path
):
    arguments = [*checked(toy), f"--images={photos}/a_red.png", "--operator=fade+noise"]
    code, err = launch_masks(*arguments, f"--out={tmp_path}/out")
    assert code == 0, err
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["flags"]["operator"] == "fade+noise"
    row = results.load(tmp_path / "out")["rows"][0]
    held = ["blur", "half_blur", "double_blur", "mean"]
    assert list(row["evidence"]["transfer"]) == held
    assert list(row["evidence"]["floor"]) == ["fade", "noise", *held]
    assert row["evidence"]["floor"]["fade"] == row["score_floor"]
    text = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "faded to grey or replaced by noise, in turn" in text


@pytest.mark.slow
def test_channels_of_a_layer(launch_masks, photos, toy, tmp_path):
    arguments = [a for a in toy if "areas" not in a]
    arguments += [f"--images={photos}", "--method=channels", "--counts=1,2"]
    code, err = launch_masks(*arguments, "--layer=colors", f"--out={tmp_path}/out")
    assert code == 2
    # A layer spelled otherwise ends with the names that there are.
    assert "colours" in err.splitlines()[-1]
    code, err = launch_masks(*arguments, "--layer=colours", f"--out={tmp_path}/out")
    assert code == 0, err
    got = results.load(tmp_path / "out")
    assert got["channels"].shape == (4, 2, 4)
    # Each picture's own colour is the one channel that its answer rests on.
    np.testing.assert_array_equal(got["channels"][:, 0].argmax(-1), [0, 1, 2, 0])
    assert got["rows"][1]["count"] == 2
    assert got["rows"][1]["evidence"]["floor"] == {"zero": got["rows"][1]["score_floor"]}


@pytest.mark.slow
def test_the_long_evidence_reruns_and_asks_a_second_network(
    launch_masks, photos, toy, instant, tmp_path
):
    arguments = [*checked(toy), "--evidence=full", f"--images={photos}/a_red.png"]
    arguments += ["--second_model=tests.launch.toy:load", f"--out={tmp_path}/out"]
    code, err = launch_masks(*arguments)
    assert code == 0, err
    # The masks, another key, three noisy pictures, the mirror, and one that is moved.
    assert len(instant) == 7
    for row in read_lines(tmp_path / "out" / "results.jsonl"):
        found = row["evidence"]["full"]
        assert set(found) == {"other_game", "seeds", "flip", "shift", "second"}
        assert 0 <= found["seeds"] <= 1
        # The second model is the first one: it has to gain exactly as much.
        assert found["second"] == pytest.approx(row["evidence"]["gain"], rel=1e-5)
    assert "the same region again" in (tmp_path / "out/report/index.html").read_text()
    code, err = launch_masks(*toy, "--second_model=demo", f"--out={tmp_path}/other")
    assert code == 2
    assert "--second_model is for --evidence=full" in err


@pytest.mark.slow
def test_a_run_keeps_its_files_and_fields(finished):
    stored = snapshot.parse((snapshot.FOLDER / "run.txt").read_text())
    assert not snapshot.lost(stored, snapshot.run_of(finished))


@pytest.mark.parametrize(("preset", "pixels"), [("caffe", 10.0), ("default", 64 * 10 / 224)])
def test_page_and_evidence_remove_as_the_preset_does(preset, pixels):
    """Ten pixels at any size, or ten of 224: the masks of a small picture were sought under one of
    them.
    """
    settings = {"operator": "blur", "preset": preset, "method": "meaningful"}
    name, operator = launcher._removal(settings, 3, None)
    square = np.zeros((64, 64, 3), np.float32)
    square[24:40, 24:40] = 1
    blurred = operator.apply(operator.prepare(square, jax.random.key(0)), np.ones((64, 64)))
    wanted = perturb.operators.Blur(pixels=pixels, levels=2)
    want = wanted.apply(wanted.prepare(square, jax.random.key(0)), np.ones((64, 64)))
    assert name == "blur"
    np.testing.assert_allclose(blurred, want, atol=1e-6)
