"""BigGAN: its file read with spectral norms, and a block and the bottom against sums written
out.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_dissect import check_generator, load_generator
from gan_dissect.nets import layouts
from gan_dissect.nets.biggan import Block
from tests.nets.test_nets import as_file

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
run = jax.jit(lambda g, z: g(z))


@pytest.fixture(scope="module")
def generator():
    return load_generator("biggan", key=KEY)


def own_file(generator):
    """The weights as the project's own class holds them, after `eval`: a stored vector beside each
    product.
    """
    file = as_file(generator)
    # The table of classes is not turned around.
    file["shared.weight"] = np.asarray(generator.variables["params"]["shared"]["embedding"])
    given = {}
    for name, t in file.items():
        t = np.array(t)
        if name.endswith("weight") and name != "shared.weight":
            # Any vector will do: the size is that which one power iteration from it gives.
            u = RNG.standard_normal((1, len(t))).astype(np.float32)
            rows = t.reshape(len(t), -1)
            v = u[0] @ rows
            size = np.linalg.norm(rows @ (v / np.linalg.norm(v)))
            # Whatever its scale: it is divided by its own size.
            given |= {
                name.replace("weight", "u0"): u,
                name.replace("weight", "sv0"): np.ones(1, np.float32),
            }
            file[name] = t / size
            # The stored kernel's own scale must not matter, for its size is divided out.
            t = t * 3
        given[name] = t.reshape(()) if name.endswith("gamma") else t
    return given, file


def test_spectral_norms_are_divided_out(generator):
    given, want = own_file(generator)
    for prefix in ("", "module.", "G_ema."):
        found = layouts.fit({prefix + n: t for n, t in given.items()})
        assert (found.net, found.project) == ("biggan", "BigGAN-PyTorch")
        assert found.tensors.keys() == want.keys()
        for name, t in want.items():
            np.testing.assert_allclose(found.tensors[name], t, rtol=2e-5, atol=1e-6, err_msg=name)
    again = load_generator("biggan", weights=given)
    assert again.apply.module == generator.apply.module


def test_norms_of_other_kinds_and_without_a_shared_table(generator):
    given, _ = own_file(generator)
    synced = {
        n.replace(".stored_", ".bn.running_") if ".bn1." in n or ".bn2." in n else n: t
        for n, t in given.items()
    }
    found = layouts.fit(synced)
    assert "as in training" in found.notes[0]
    assert "blocks.0.0.bn1.stored_mean" in found.tensors
    apart = {n: t for n, t in given.items() if n != "shared.weight"}
    tables = [n for n in apart if n.endswith((".gain.weight", ".bias.weight"))]
    for name in tables:
        # Without the shared table every norm has a table of its own, a row for each of seven
        # classes.
        apart[name] = RNG.standard_normal((7, len(apart[name]))).astype(np.float32)
        apart.pop(name.replace("weight", "u0"))
        apart.pop(name.replace("weight", "sv0"))
    apart["linear.weight"] = apart["linear.weight"][:, :4]
    G = load_generator("biggan", weights=apart)
    assert (G.apply.module.classes, G.apply.module.chunk) == (7, 0)
    kernel = G.variables["params"]["blocks.0.0"]["bn1"]["gain"]["kernel"]
    np.testing.assert_array_equal(kernel, apart["blocks.0.0.bn1.gain.weight"])


@pytest.mark.slow
def test_a_block_is_what_its_equations_say():
    """With 3x3 kernels that have a middle alone, all is per pixel."""
    block, x = Block(2, 1e-5), RNG.standard_normal((1, 3, 3, 4)).astype(np.float32)
    condition = RNG.standard_normal((1, 5)).astype(np.float32)
    v = block.init(KEY, x, condition)
    v = jax.tree.map(lambda a: jnp.asarray(RNG.standard_normal(a.shape), jnp.float32), v)
    v["batch_stats"] = jax.tree.map(lambda a: jnp.abs(a) + 0.5, v["batch_stats"])
    for name in ("conv1", "conv2"):
        kernel = v["params"][name]["kernel"]
        # So that a convolution is a matrix product at every pixel, which one line of NumPy is.
        v["params"][name]["kernel"] = jnp.zeros_like(kernel).at[1, 1].set(kernel[1, 1])
    p, s = v["params"], v["batch_stats"]

    def norm(y, name):
        gain = 1 + condition @ p[name]["gain"]["kernel"]
        y = (y - s[name]["stored_mean"]) / np.sqrt(s[name]["stored_var"] + 1e-5)
        return np.maximum(y * gain + condition @ p[name]["bias"]["kernel"], 0)

    def conv(y, name):
        kernel = p[name]["kernel"]
        return y @ kernel[len(kernel) // 2, len(kernel) // 2] + p[name]["bias"]

    big = x.repeat(2, 1).repeat(2, 2)
    want = conv(norm(conv(norm(big, "bn1"), "conv1"), "bn2"), "conv2") + conv(big, "conv_sc")
    np.testing.assert_allclose(block.apply(v, x, condition), want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_classes_latents_and_checks(generator):
    check_generator(generator)
    z = RNG.standard_normal((2, 12)).astype(np.float32)
    both = run(generator, {"z": z, "label": np.array([3, 4])})["image"]
    assert both.shape == (2, 16, 16, 3)
    missing = run(generator, {"z": z, "label": np.array([10, -1])})["image"]
    assert np.isnan(missing).all()
    one = load_generator("biggan", key=KEY, label=3)
    np.testing.assert_allclose(run(one, z)["image"][0], both[0], atol=1e-6)
    cut = load_generator("biggan", key=KEY, truncation=0.4)
    drawn = jax.vmap(cut.draw)(jax.random.split(KEY, 50))
    # Cut off at 2, as published, then times .4.
    assert float(jnp.abs(drawn["z"]).max()) <= 0.8
    for options, words in (
        ({"label": 10}, "label must be in 0 to 9"),
        ({"truncation": 2.0}, "truncation"),
    ):
        with pytest.raises(ValueError, match=words):
            load_generator("biggan", key=KEY, **options)
    with pytest.raises(ValueError, match=r"no tensors linear\.weight"):
        load_generator("biggan", weights={"a": np.zeros(2)})
