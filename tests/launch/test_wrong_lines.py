"""Wrong command lines: one short line that names the flag and what to do, before anything
compiles.
"""

import re

import numpy as np
import PIL.Image
import pytest
from absl.testing import flagsaver

from launch import convert, dissect, evaluate, flags, help, masks, walk
from launch.inputs import listing
from launch.job import hosts, run

TOY = "--model=tests.launch.toy:load"
P = "--images={tmp}/photos"
# launcher, flags, words that the answer must have; {tmp} holds what `folder` makes
LINES = [
    (masks, "--method=extrem", "extremal"),
    (masks, "--game=keep", "preserve"),
    (masks, "--areas=0", "0.05,0.1"),
    (masks, "--areas=ten", "0.05,0.1"),
    (masks, "--areas=0.1,0.1", "given twice"),
    (masks, "--areas=", "0.05,0.1"),
    (masks, "--counts=0 --method=channels --layer=colours", "25,50"),
    (masks, "--counts=1.5 --method=channels --layer=colours", "whole numbers"),
    (masks, "--counts=5", "--method=extremal"),
    (masks, "--layer=colours", "--method=extremal"),
    (masks, "--method=channels", "--layer=NAME"),
    (masks, f"--method=channels --layer=colour {P} {TOY}", "'colours'; --list_layers"),
    (masks, "--method=channels --layer=conv99", "--list_layers"),
    (masks, "--solver=adam", "torchray"),
    (masks, "--preset=caffe", "--method=extremal"),
    (masks, "--steps=0", "--steps"),
    (masks, "--steps=many", "--steps"),
    (masks, "--restarts=0", "--restarts"),
    (masks, "--batch_size=1", "--batch_size"),
    (masks, "--seed=-1", "--seed"),
    (masks, "--page_items=1", "--page_items"),
    (masks, "--max_error_rate=2", "--max_error_rate"),
    (masks, "--evidence=some", "none"),
    (masks, "--second_model=demo", "--evidence=full"),
    (masks, "--reward=logits", "did you mean logit"),
    (masks, "--reward=probabilty", "did you mean probability"),
    (masks, "--reward=region", "--reward=score"),
    (masks, f"--reward=value {P} {TOY}", "--reward=score"),
    (masks, "--operator=blurr", "did you mean blur"),
    (masks, "--operator=blur+blur", "in turn"),
    (masks, f"--target=4 {P} {TOY}", "below the model's 4 classes"),
    (masks, "--target=1000", "below the model's 10 classes"),
    (masks, "--target=-1", "known: "),
    (masks, f"--target=gren {P} {TOY}", "did you mean green"),
    (masks, f"--target=dog {P} --model=tests.launch.toy:broken", "--class_names"),
    (masks, f"--target=csv {P} {TOY}", "not a list"),
    (masks, "--images={tmp}/nowhere --model=demo", "no such folder"),
    (masks, "--images={tmp}/empty --model=demo", ".png"),
    (masks, "--images={tmp}/photos/*.tif --model=demo", "no file matches"),
    (masks, "--images={tmp}/none.csv --model=demo", "none.csv"),
    (masks, "--images={tmp}/unknown.csv --model=demo", "label, class"),
    (masks, "--images={tmp}/two.csv --model=demo", "rename one to target"),
    (masks, "--images={tmp}/nopath.csv --model=demo", "called path"),
    (masks, P, "--model is missing"),
    (masks, "--model=squeezenet1.1", "did you mean squeezenet1_1"),
    (masks, "--model=resnet", "did you mean resnet"),
    (masks, "--model=no.such.module:load", "cannot import"),
    (masks, "--model=tests.launch.toy:lod", "no function 'lod'"),
    (masks, "--model=squeezenet1_1 --weights={tmp}/none.pth", "no such file"),
    (masks, "--model=squeezenet1_1 --weights={tmp}/other.npz", "another net"),
    (masks, "--model=demo --weights={tmp}/other.npz", "its own weights"),
    (masks, "--weights_sha256=00", "--weights=FILE"),
    (masks, "--model=demo --rename=^net[.]=", "nets of perturb.load_model"),
    (masks, "--model=demo --input_size=96", "nets of perturb.load_model"),
    (masks, "--model=squeezenet1_1 --weights={tmp}/other.npz --rename=net", "PATTERN=TEXT"),
    (masks, "--model=squeezenet1_1 --weights={tmp}/other.npz --rename=^no=", "matches no name"),
    (masks, "--input_size=8", "--input_size"),
    (dissect, "--generator=demo --input_size=96", "--model"),
    (walk, "--generator=demo --rename=^net=", "gan_dissect.load_generator"),
    (masks, f"--class_names={{tmp}}/names.json {P} {TOY}", "one name a line"),
    (masks, "--meth=extremal", "method"),
    (masks, "extremal", "--name=value"),
    (masks, "--steps=1 --steps=2", "given twice"),
    (masks, "--shard=3/2", "--shard"),
    (evaluate, "--attributions=grad-cam", "did you mean grad_cam"),
    (evaluate, "--attributions=saliency", "gradient"),
    (evaluate, "--metrics=insertions", "did you mean insertion"),
    (evaluate, "--metrics=boxes", "--boxes=FILE.csv"),
    (evaluate, "--metrics=boxes --boxes={tmp}/unknown.csv", "xmin"),
    (evaluate, "--rise_samples=0", "--rise_samples"),
    (evaluate, "--target=1000", "below the model's 10 classes"),
    (dissect, "--quantile=2", "--quantile"),
    (dissect, "--samples=x", "--samples"),
    (dissect, "--generator=dcgam", "did you mean dcgan"),
    (dissect, "--generator=demo --layer=foo", "nearest"),
    (walk, "--from=3 --to=-3", "--from must be below --to"),
    (walk, "--generator=dcgan", "--direction is missing"),
    (walk, "--frames=1", "--frames"),
    (walk, "--animation=mp3", "gif"),
    (masks, "--out={tmp}/names.json/out", "names.json"),
    (convert, "", "--source is missing"),
    (convert, "--source={tmp}/none.pth", "none.pth"),
    (convert, "--source={tmp}/a.pth --out={tmp}/a.npz", ".safetensors"),
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "empty").mkdir()
    PIL.Image.new("RGB", (32, 32), "red").save(tmp_path / "photos" / "a.png")
    # A column of classes under a name that nobody could guess.
    (tmp_path / "unknown.csv").write_text("path,klass\nphotos/a.png,3\n")
    (tmp_path / "two.csv").write_text("path,label,class\nphotos/a.png,3,4\n")
    (tmp_path / "nopath.csv").write_text("thing,target\nphotos/a.png,3\n")
    # Neither JSON nor one name a line.
    (tmp_path / "names.json").write_text("{3: 4}")
    # Four hundred names, of which the answer may not print all.
    other = {f"net.block{i}.weight": np.zeros((2, 2), np.float32) for i in range(400)}
    np.savez(tmp_path / "other.npz", **other)
    return tmp_path


@pytest.mark.parametrize(
    ("launcher", "line", "words"), LINES, ids=[str(i) for i in range(len(LINES))]
)
def test_a_wrong_line_is_answered_in_one(launched, folder, launcher, line, words):
    arguments = line.format(tmp=folder).split()
    # `convert` writes beside its source: it is the only one that needs no folder.
    if launcher is not convert and not any(a.startswith("--out") for a in arguments):
        arguments.append(f"--out={folder}/out")
    code, err = launched(launcher, *arguments)
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    # The folder of the test is in some answers, and its length is not ours to keep short.
    assert len(last) <= len("error: ") + 300 + len(str(folder))
    assert "Traceback" not in err


def test_a_taken_folder_is_said_in_few_words(folder):
    """Every model field differs; three are named."""
    # One of two processes: a run alone that has committed nothing gives way.
    part = hosts.Place(0, 2, False)

    items = listing.scan(str(folder / "photos"))
    # Values far too long to be printed, as lists of classes can be.
    settings = {f"flag{i}": "x" * 500 for i in range(20)}
    run.Run(folder / "out", settings, {"answers": [1.0] * 16, "name": "a"}, items, place=part)
    changed = dict.fromkeys(settings, "y" * 500)
    with pytest.raises(ValueError, match="and 18 more") as caught:
        run.Run(folder / "out", changed, {"answers": [2.0] * 16, "name": "a"}, items, place=part)
    assert len(str(caught.value)) <= 420 + len(str(folder))


@pytest.mark.parametrize("launcher", [masks, dissect, walk], ids=["masks", "dissect", "walk"])
def test_list_layers(capsys, launcher):
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
        flags.run(launcher.main, ["launcher", "--list_layers"])
    assert not end.value.code
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5
    # A name, two spaces and a shape for any batch: columns that a script can take apart.
    assert all(re.fullmatch(r"\S.*  \[B(, \d+)+\]", line) for line in lines)


def test_help_has_every_flag_once_with_its_default():
    masks_flags = flags.flags.FLAGS.get_key_flags_for_module(masks)
    shown = help.text("about", masks_flags)
    themes = [shown.index(f"\n{theme}:\n") for theme in help.THEMES]
    assert themes == sorted(themes)
    for flag in masks_flags:
        name = f"[no]{flag.name}" if flag.boolean else flag.name
        assert shown.count(f"\n  --{name}: ") == 1
        part = shown.split(f"\n  --{name}: ")[1].split("\n  --")[0]
        assert "efault" in part, flag.name
