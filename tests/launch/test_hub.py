"""Weights from the Hub: a local cache in its layout, what is recorded, and what is said offline."""

import hashlib
import json
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

import perturb
from launch import generators, hub
from perturb import weights as weights_lib
from perturb.weights import filling

# As long as a commit is, which tells it from a branch or a tag.
COMMIT, BRANCH = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache of huggingface_hub, offline, with one repository of a main branch and a commit."""
    pytest.importorskip("huggingface_hub", reason="the Hub's client is not installed")
    from huggingface_hub import constants

    root = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    repo = root / "models--someone--net"
    (repo / "refs").mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "refs" / "main").write_text(BRANCH)
    # Other weights in each, so that a mix-up of revisions shows in the digest.
    for seed, commit in enumerate((COMMIT, BRANCH)):
        model = perturb.load_model("cifar_resnet20", key=jax.random.key(seed))
        leaves = filling._leaves(model.variables)
        # As PyTorch stores them, out by in by height by width.
        back = {4: lambda w: w.transpose(3, 2, 0, 1), 2: lambda w: w.T, 1: lambda w: w}
        data = safetensors.numpy.save(
            {
                name: np.ascontiguousarray(back[leaves[path].ndim](np.asarray(leaves[path])))
                for name, (path, _) in weights_lib.slots(model.variables).items()
            }
        )
        blob = hashlib.sha256(data).hexdigest()
        (repo / "blobs" / blob).write_bytes(data)
        folder = repo / "snapshots" / commit
        folder.mkdir(parents=True)
        # The layout of the client: blobs by content, and links to them under each commit.
        (folder / "model.safetensors").symlink_to(f"../../blobs/{blob}")
    # Answers are kept for the length of a process, which here is that of many tests.
    hub.fetch.cache_clear()
    yield repo
    hub.fetch.cache_clear()


@pytest.mark.parametrize(
    ("revision", "commit"), [("", BRANCH), ("@main", BRANCH), (f"@{COMMIT}", COMMIT)]
)
def test_a_run_records_the_commit_and_the_bytes(
    cache, launch_masks, photos, instant, tmp_path, revision, commit
):
    out, weights = tmp_path / "out", f"hf:someone/net{revision}"
    code, err = launch_masks(
        "--model=cifar_resnet20", f"--weights={weights}", f"--images={photos}", f"--out={out}"
    )
    assert code == 0, err
    record = json.loads((out / "run.json").read_text())
    data = (cache / "snapshots" / commit / "model.safetensors").read_bytes()
    assert record["model"]["hub"] == {
        "repo": "someone/net",
        "file": "model.safetensors",
        "revision": commit,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert record["flags"]["weights"] == weights


def test_generators_record_it_too(cache):
    generator = generators.load("demo")
    described = generators.describe(generator, None, f"hf:someone/net@{COMMIT}")
    assert described["hub"]["revision"] == COMMIT
    assert described["hub"]["sha256"] == hub.source(f"hf:someone/net@{COMMIT}")["sha256"]
    assert generators.describe(generator, None, "some.safetensors")["hub"] is None


def test_a_branch_that_moved_is_another_run(cache, launch_masks, photos, instant, tmp_path):
    command = ("--model=cifar_resnet20", "--weights=hf:someone/net", f"--images={photos}")
    assert launch_masks(*command, f"--out={tmp_path}/out")[0] == 0
    # What a push to the branch does to the cache once it is fetched.
    (cache / "refs" / "main").write_text(COMMIT)
    hub.fetch.cache_clear()
    code, err = launch_masks(*command, f"--out={tmp_path}/out")
    assert code == 2
    assert "holds another run" in err
    assert COMMIT in err


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (
            "hf:someone/other",
            "the Hub cannot be reached and the local cache has no such file; where",
        ),
        ("hf:someone/net@v2", "hf download someone/net model.safetensors --revision v2"),
        ("hf:someone/net:other.safetensors", "hf download someone/net other.safetensors"),
        ("hf:someone/net:model.bin", "model.bin is no .safetensors file"),
        ("hf:net", "expected hf:OWNER/NAME[@REVISION][:FILE]"),
    ],
)
def test_what_is_not_there_ends_with_one_line(
    cache, launch_masks, photos, tmp_path, weights, words
):
    code, err = launch_masks(
        "--model=cifar_resnet20",
        f"--weights={weights}",
        f"--images={photos}",
        f"--out={tmp_path}/o",
    )
    assert code == 2
    assert err.splitlines()[-1].startswith(f"error: --weights={weights}")
    assert words in err.splitlines()[-1]


def test_without_the_client_it_says_what_to_install(monkeypatch, launch_masks, photos, tmp_path):
    # Python's mark of a module that cannot be imported.
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, err = launch_masks(
        "--model=cifar_resnet20", "--weights=hf:a/b", f"--images={photos}", f"--out={tmp_path}/o"
    )
    assert code == 2
    assert err.splitlines()[-1].endswith("needs huggingface_hub: pip install huggingface_hub")
