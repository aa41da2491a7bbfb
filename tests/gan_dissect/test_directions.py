"""Boundaries against known attributes, optimality and published files; factors against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_dissect import (
    attribute_direction,
    ganspace,
    load_generator,
    project,
    sample,
    sefa,
    walk,
)
from gan_dissect.directions import _fit_all, auc, cosines, random_directions
from gan_dissect.factors import layer_weight, sefa_weight, style_layers
from gan_dissect.nets.boundaries import (
    read_boundary,
    read_components,
    write_boundary,
    write_components,
)
from tests import graphnet

RNG = np.random.default_rng(0)
# Of gan.md: age and gender, age and glasses, gender and glasses, smile and gender.
PUBLISHED = {
    "pggan_celebahq": ("", (0.49, 0.38, 0.52, -0.10)),
    "stylegan_celebahq": ("", (0.27, 0.32, 0.64, -0.17)),
    "stylegan_celebahq_w": ("_w", (0.14, 0.07, 0.27, -0.09)),
}


@pytest.mark.slow_cases
@pytest.mark.parametrize("loss", ["logistic", "hinge"])
def test_known_attribute(loss):
    z = RNG.standard_normal((6000, 64)).astype(np.float32)
    true = np.asarray(random_directions(jax.random.key(5), 3, 64), np.float64)
    # Monotone in one direction each, so that the boundary's normal is known.
    scores = np.tanh(z @ true.T + 0.3)
    found = attribute_direction(z, scores, loss=loss)
    assert found.normal.shape == (3, 64)
    np.testing.assert_allclose(np.linalg.norm(found.normal, axis=1), 1)
    assert (np.sum(found.normal * true, 1) >= 0.99).all()
    assert (found.auc_test > 0.999).all()
    assert (found.accuracy_test > 0.99).all()
    # One attribute alone is the same problem.
    alone = attribute_direction(z, scores[:, 0], loss=loss)
    np.testing.assert_allclose(alone.normal @ found.normal[0], 1, atol=1e-4)
    # Another split, nearly the same boundary; the same key, the same.
    other = attribute_direction(z, scores[:, 0], loss=loss, key=jax.random.key(9))
    assert 0.99 < other.normal @ alone.normal < 1
    # A shift of the latents moves the boundary with it: the intercept is kept.
    moved = attribute_direction(z + 4, scores[:, 0], loss=loss)
    # normal @ (z + 4) + b is normal @ z + b + 4 times the normal's sum.
    np.testing.assert_allclose(moved.intercept, alone.intercept - 4 * alone.normal.sum(), atol=0.02)


@pytest.mark.slow_cases
@pytest.mark.parametrize("share", [0.02, 0.04, 0.5, 0.7])
@pytest.mark.parametrize("kind", ["labels", "areas"])
def test_the_extremes_follow_the_attribute(share, kind):
    """Labels of 0 and 1, and areas that are 0 in all samples without it: the direction that
    decides.
    """
    z = RNG.standard_normal((4000, 8)).astype(np.float32)
    over = z[:, 3] - np.quantile(z[:, 3], 1 - share)
    scores = (over > 0) if kind == "labels" else np.maximum(over, 0)
    found = attribute_direction(z, scores)
    assert found.normal[3] > 0.97
    assert found.auc_test > 0.97
    rare = min(share, 1 - share)
    want = rare if kind == "labels" else min(share, 0.1)
    np.testing.assert_allclose(found.extremes, want, atol=0.001)


@pytest.mark.slow
def test_samples_without_a_score_are_left_out():
    """The answer is that of the others alone, each attribute by itself, and their number is
    said.
    """
    z = RNG.standard_normal((1000, 8)).astype(np.float32)
    scores = np.stack([z[:, 1], z[:, 2] > 1.6, z[:, 4]], 1)
    scores[RNG.random(1000) < 0.1, 0] = np.nan
    scores[z[:, 2] < -1, 1] = np.nan
    found = attribute_direction(z, scores)
    assert found.left_out.tolist() == np.isnan(scores).sum(0).tolist()
    for a in range(3):
        there = np.isfinite(scores[:, a])
        alone = attribute_direction(z[there], scores[there, a])
        np.testing.assert_allclose(found.normal[a], alone.normal, atol=0.02)
        np.testing.assert_allclose(found.auc_all[a], alone.auc_all, atol=0.01)
        assert found.normal[a, (1, 2, 4)[a]] > 0.95


def test_noise_has_no_direction():
    z = RNG.standard_normal((3000, 32)).astype(np.float32)
    found = attribute_direction(z, RNG.standard_normal((3000, 20)))
    assert (abs(found.auc_test - 0.5) < 0.15).all()
    # 95 % intervals of twenty attributes: 16 or more hold the chance of one half, 19 on average.
    inside = (found.auc_low <= 0.5) & (found.auc_high >= 0.5)
    assert inside.mean() >= 0.8


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
def test_fit_is_the_optimum(loss):
    """The gradient of the objective, or the duality gap of the support vector machine, is 0."""
    n, penalty = 200, 0.02
    signs = np.repeat([-1.0, 1.0], n // 2)
    # The classes overlap: the loss has an optimum, and does not only grow with the weights.
    x = RNG.standard_normal((1, n, 8)) + 0.7 * signs[None, :, None]
    w, b = _fit_all(
        jnp.asarray(x, jnp.float32), jnp.asarray(signs, jnp.float32), penalty, loss=loss
    )
    w, b = np.asarray(w[0], np.float64), float(b[0])
    margin = signs * (x[0] @ w + b)
    if loss == "logistic":
        # The gradient of the mean loss, which at the optimum is that of the penalty.
        pull = signs / (1 + np.exp(margin)) / n
        np.testing.assert_allclose(pull @ x[0], penalty * w, atol=1e-5)
        assert abs(pull.sum()) < 1e-5
    else:
        primal = np.maximum(0, 1 - margin).mean() + penalty / 2 * w @ w
        # A feasible point of the dual: multipliers in [0, 1/n] whose signed sum is 0.
        alpha = np.clip((1 - margin + 0.01) / 0.02, 0, 1) / n
        for s in (-1, 1):
            excess = max(0.0, s * (alpha @ signs))
            part = signs == s
            alpha[part] *= 1 - excess / alpha[part].sum()
        v = (alpha * signs) @ x[0] / penalty
        dual = alpha.sum() - penalty / 2 * v @ v
        # A dual point is never above the primal: the gap bounds how far the optimum is.
        assert 0 <= primal - dual < 0.01 * primal


@pytest.mark.slow
def test_digits_and_their_predictor(data_dir):
    """MNIST DCGAN with LeNet: what it says of a digit is a hyperplane in z to a measured degree."""
    generator = load_generator(
        "dcgan", weights=data_dir / "weights" / "mnist_dcgan_generator.safetensors"
    )
    graph, variables = graphnet.load(data_dir / "weights" / "mnist_lenet5.json")

    @jax.jit
    def read(generator, variables, z):
        image = jax.image.resize(generator(z)["image"], (len(z), 32, 32, 1), "bilinear")
        logits = graph(variables, image.transpose(0, 3, 1, 2))
        return jax.nn.log_softmax(logits)[:, jnp.array([0, 1, 3, 7])]

    z = sample(generator, jax.random.key(0), 2000)
    scores = np.concatenate([read(generator, variables, part) for part in z.reshape(8, 250, -1)])
    found = attribute_direction(z, scores)
    assert (found.auc_test > 0.9).all()
    assert (found.auc_low > 0.8).all()
    assert (found.auc_low <= found.auc_test + 1e-6).all()
    assert (found.auc_test <= found.auc_high + 1e-6).all()
    # Split at the middle of the log-probabilities, which few digits are clear of.
    assert (found.auc_all > 0.6).all()
    # The same scores of other latents: nothing is left to be found.
    control = attribute_direction(z, RNG.permutation(scores[:, 0]))
    assert control.auc_test < found.auc_test.min() - 0.2


def test_auc():
    # One decimal: some scores tie, and count half.
    s, y = RNG.standard_normal(60).round(1), RNG.random(60) < 0.4
    p, n = s[y], s[~y]
    pairs = (p[:, None] > n[None]) + 0.5 * (p[:, None] == n[None])
    area, low, high = auc(s, y)
    np.testing.assert_allclose(area, pairs.mean())
    # DeLong's variance from the pairs themselves.
    spread = pairs.mean(1).var(ddof=1) / len(p) + pairs.mean(0).var(ddof=1) / len(n)
    np.testing.assert_allclose((high - low) / 2, 1.959964 * np.sqrt(spread))
    assert all(np.isnan(auc([1.0, 2.0], [1, 1])))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_projection_is_the_analytic_one(count):
    rng = np.random.default_rng(count)
    n, c = rng.standard_normal(50), rng.standard_normal((count, 50))
    unit = c / np.linalg.norm(c, axis=1, keepdims=True)
    gram = unit @ unit.T
    # Least squares: what is left is at right angles to all conditions at once.
    want = n - unit.T @ np.linalg.solve(gram, unit @ n)
    found = project(n, c if count > 1 else c[0])
    np.testing.assert_allclose(found.normal, want / np.linalg.norm(want), atol=1e-12)
    np.testing.assert_allclose(unit @ found.normal, 0, atol=1e-12)
    # The Gram matrix has the squares of the singular values.
    np.testing.assert_allclose(found.condition, np.sqrt(np.linalg.cond(gram)))
    np.testing.assert_allclose(found.kept, np.linalg.norm(want) / np.linalg.norm(n))


def test_projection_on_what_depends():
    n, c = RNG.standard_normal(20), RNG.standard_normal((2, 20))
    twice = project(n, np.concatenate([c, c[:1]]))
    np.testing.assert_allclose(twice.normal, project(n, c).normal, atol=1e-10)
    assert twice.condition > 1e10
    with pytest.raises(ValueError, match="must not be a mixture"):
        project(c[0] - 2 * c[1], c)
    with pytest.raises(ValueError, match=r"primal must be \[D\]"):
        project(n, c[:, :5])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_cosines(data_dir, name):
    end, table = PUBLISHED[name]
    folder = data_dir / "gan" / "boundaries" / "interfacegan"
    read = [
        read_boundary(folder / f"{name.removesuffix('_w')}_{a}{end}_boundary.npy", size=512)
        for a in ("age", "gender", "eyeglasses", "smile")
    ]
    got = cosines([b.normal for b in read])
    # The table is rounded to two places.
    np.testing.assert_allclose([got[0, 1], got[0, 2], got[1, 2], got[3, 1]], table, atol=0.00501)
    # Cosines of random directions are nearly normal with variance 1 / 512; the mean size of a
    # normal number is .8 of its deviation.
    null = cosines(random_directions(jax.random.key(0), 200, 512))
    np.testing.assert_allclose(
        np.abs(null[np.triu_indices(200, 1)]).mean(), 0.8 / 512**0.5, rtol=0.03
    )


def test_published_projections(data_dir):
    """The conditional boundaries that InterFaceGAN publishes are projections of its own."""
    folder = data_dir / "gan" / "boundaries" / "interfacegan"

    def read(name):
        return read_boundary(folder / f"pggan_celebahq_{name}_boundary.npy").normal

    age, gender, glasses = map(read, ("age", "gender", "eyeglasses"))
    one, two = project(age, gender), project(age, [gender, glasses])
    assert one.normal @ read("age_c_gender") > 1 - 1e-5
    assert two.normal @ read("age_c_gender_eyeglasses") > 1 - 1e-5


def test_every_published_file(data_dir, tmp_path):
    folder = data_dir / "gan" / "boundaries"
    files = [
        f for part in ("interfacegan", "higan") for f in sorted((folder / part).rglob("*.np[yz]"))
    ]
    assert len(files) == 50
    for file in files:
        found = read_boundary(file, size=512)
        np.testing.assert_allclose(np.linalg.norm(found.normal), 1)
        if file.suffix == ".npz":
            assert found.layers == (6, 7, 8, 9, 10, 11)
            assert found.kind == "attribute"
    for file in sorted((folder / "higan_original_pickled").iterdir()):
        with pytest.raises(ValueError, match="pickled files are never opened"):
            read_boundary(file)
        twin = folder / "higan" / "stylegan_bedroom" / f"{file.stem}.npz"
        assert read_boundary(twin).normal.shape == (512,)
    with pytest.raises(ValueError, match="for latents of size 512, the generator's have 64"):
        read_boundary(files[0], size=64)
    write_boundary(tmp_path / "d.npy", found.normal)
    np.testing.assert_array_equal(np.load(tmp_path / "d.npy").shape, (1, 512))
    np.testing.assert_allclose(read_boundary(tmp_path / "d.npy").normal, found.normal, rtol=1e-12)
    np.save(tmp_path / "w.npy", np.ones((1, 14, 8)))
    assert read_boundary(tmp_path / "w.npy").normal.shape == (14, 8)
    (tmp_path / "junk.npy").write_bytes(b"not an array")
    np.save(tmp_path / "zero.npy", np.zeros((1, 8)))
    np.savez(tmp_path / "other.npz", direction=np.ones(8))
    for name, match in (
        ("junk.npy", "no plain array"),
        ("zero.npy", "not 0"),
        ("other.npz", "no array called"),
    ):
        with pytest.raises(ValueError, match=match):
            read_boundary(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_boundary(tmp_path / "none.npy")


def test_sefa():
    a = RNG.standard_normal((12, 300))
    # Columns of length 1, the published normalisation: eigenvalues are squares of singular values.
    left, values, _ = np.linalg.svd(a / np.linalg.norm(a, axis=0))
    found = sefa(a, k=12)
    np.testing.assert_allclose(np.abs(np.sum(found.directions * left.T, 1)), 1, atol=1e-9)
    np.testing.assert_allclose(found.values, values**2)
    assert (np.diff(found.values) < 0).all()
    np.testing.assert_allclose(found.share.sum(), 1)
    plain = sefa(a, k=3, normalise=False)
    left = np.linalg.svd(a)[0]
    np.testing.assert_allclose(np.abs(np.sum(plain.directions * left.T[:3], 1)), 1, atol=1e-9)
    with pytest.raises(ValueError, match="k must be in 1 to 12"):
        sefa(a, k=13)


def test_first_layer(data_dir):
    generator = load_generator(
        "dcgan", weights=data_dir / "weights" / "mnist_dcgan_generator.safetensors"
    )
    weight = layer_weight(generator, "gen.0.0")
    # Turned around, since a transposed convolution is kept as the correlation that it is computed
    # by.
    kernel = np.asarray(generator.variables["params"]["gen.0.0"]["kernel"])[::-1, ::-1]
    np.testing.assert_allclose(weight, kernel.transpose(2, 0, 1, 3).reshape(64, -1), atol=1e-6)
    with pytest.raises(ValueError, match="must be an affine function"):
        layer_weight(generator, "gen.1.0")


def test_ganspace():
    x = RNG.standard_normal((500, 20)) @ RNG.standard_normal((20, 20)) + 3
    values, vectors = np.linalg.eigh(np.cov(x.T))
    found = ganspace(x, k=5)
    np.testing.assert_allclose(found.values, np.sqrt(values[::-1][:5]))
    np.testing.assert_allclose(
        np.abs(np.sum(found.directions * vectors.T[::-1][:5], 1)), 1, atol=1e-8
    )
    np.testing.assert_allclose(found.share, (values[::-1] / values.sum())[:5])
    # Of activations that are linear in z, the latent directions are those that move the components.
    # Six sizes that differ: the components come in the order of the latents.
    z = RNG.standard_normal((500, 6))
    a = z @ np.diag([5.0, 4, 3, 2, 1, 0.5]) @ np.linalg.qr(RNG.standard_normal((30, 6)))[0].T
    found = ganspace(a.reshape(500, 5, 6) + 7, k=3, latents=z + 2)
    # By least squares, written out.
    centred = a - a.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:3]
    coordinates = centred @ axes.T
    want = np.linalg.lstsq(coordinates / coordinates.std(0, ddof=1), z - z.mean(0), rcond=None)[0]
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs(np.sum(found.directions * want, 1)), 1, atol=1e-9)
    assert found.directions[0].argmax() == 0
    with pytest.raises(ValueError, match="latents must be"):
        ganspace(a, k=3, latents=z[:10])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"scores": np.zeros(5)}, "scores"),
        ({"scores": np.full(100, np.nan)}, "must not all be NaN"),
        ({"scores": np.full(100, np.inf)}, "got infinite values"),
        ({"scores": np.arange(100) == 7}, "got 1 of which 1 to fit; score more samples"),
        ({"scores": np.arange(100) < 4, "extremes": 0.1}, "take fewer extremes, or None"),
        ({"scores": np.zeros(100)}, "scores must differ"),
        ({"loss": "square"}, "loss must be"),
        ({"extremes": 0.7}, "extremes must be in"),
        ({"extremes": 0.01}, "must leave samples"),
    ],
)
def test_errors(options, match):
    options = {"latents": RNG.standard_normal((100, 4)), "scores": np.arange(100.0)} | options
    with pytest.raises(ValueError, match=match):
        attribute_direction(options.pop("latents"), options.pop("scores"), **options)


def test_ganspace_files(tmp_path):
    """GANSpace's own layout: components `[k, 1, D]`, beside what else its files hold."""
    found = ganspace(RNG.standard_normal((200, 12)) * np.arange(1, 13), k=5)
    path = tmp_path / "components.npz"
    write_components(path, found)
    with np.load(path) as arrays:
        assert arrays["lat_comp"].shape == (5, 1, 12)
        assert arrays["lat_mean"].shape == (1, 1, 12)
        others = {k: arrays[k] for k in arrays.files}
    again = read_components(path, size=12)
    for a, b in zip(again, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    # Their directions need not be of length 1.
    np.savez(path, **others | {"lat_comp": 3 * others["lat_comp"]}, act_comp=np.zeros(3))
    np.testing.assert_allclose(read_components(path).directions, found.directions, atol=1e-6)
    with pytest.raises(ValueError, match="is for latents of size 12"):
        read_components(path, size=512)
    with pytest.raises(FileNotFoundError):
        read_components(tmp_path / "none.npz")
    np.savez(path, lat_comp=np.ones((2, 3)))
    with pytest.raises(ValueError, match="is no GANSpace file"):
        read_components(path)
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(ValueError, match="pickled files are never opened"):
        read_components(tmp_path / "pickled.npy")
    np.save(tmp_path / "plain.npy", np.ones(3))
    with pytest.raises(ValueError, match=r"is no \.npz of plain arrays"):
        read_components(tmp_path / "plain.npy")


def styles(space="w"):
    return load_generator("stylegan2", key=jax.random.key(0), space=space)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["w", "w+"])
@pytest.mark.parametrize("chosen", [None, [1, 2], [5]])
def test_sefa_of_the_layers_of_a_stylegan(space, chosen):
    """The published default: the weights of all layers' styles side by side, and of some."""
    generator = styles(space)
    names = ["b4.conv1", "b8.conv0", "b8.conv1", "b16.conv0", "b16.conv1", "b16.torgb"]
    assert style_layers(generator) == tuple(f"{n}.style" for n in names)
    taken = names if chosen is None else [names[k] for k in chosen]
    weight = np.concatenate(
        [generator.variables[f"synthesis.{n}.affine.weight"].T for n in taken], 1
    )
    found = sefa_weight(generator, chosen)
    np.testing.assert_allclose(found, weight / 4, atol=1e-6)  # over the root of 16 styles
    got, want = sefa(found, k=3), sefa(weight, k=3)
    np.testing.assert_allclose(got.directions, want.directions, atol=1e-4)
    with pytest.raises(ValueError, match="layers must be in 0 to 5"):
        sefa_weight(generator, [6])


def test_sefa_of_a_progressive_generator():
    """The first layer's kernel, as published, though the latent is normalised before it."""
    generator = load_generator("pggan", key=jax.random.key(0))
    kernel = np.asarray(generator.variables["params"]["layer1"]["conv"]["kernel"])
    torch = kernel.transpose(3, 2, 0, 1)  # O, I, k, k
    weight = torch[:, :, ::-1, ::-1].transpose(1, 0, 2, 3).reshape(32, -1)
    got, want = sefa(sefa_weight(generator), k=4), sefa(weight, k=4)
    np.testing.assert_allclose(got.directions, want.directions, atol=1e-5)
    np.testing.assert_allclose(got.values, want.values, rtol=1e-5)
    with pytest.raises(ValueError, match="has no styles"):
        sefa_weight(load_generator("dcgan", key=jax.random.key(0)))
    with pytest.raises(ValueError, match="load stylegan2 with space='w'"):
        sefa_weight(styles("z"))


def test_a_walk_in_some_layers():
    generator = styles("w+")
    latent = np.asarray(sample(generator, jax.random.key(1), 2))[0]
    normal = np.eye(16)[3] * 2
    found = walk(generator, latent, normal, steps=[-1.0, 2.0], layers=[0, 4])
    moved = found.latents - latent
    want = np.zeros((2, 6, 16))
    want[0, [0, 4], 3], want[1, [0, 4], 3] = -1, 2
    np.testing.assert_allclose(moved, want, atol=1e-5)
    # A direction a layer: each is scaled to length 1 by itself.
    rows = RNG.standard_normal((6, 16))
    each = walk(generator, latent, rows, steps=[0.0, 1.0]).latents[1] - latent
    np.testing.assert_allclose(each, rows / np.linalg.norm(rows, axis=1)[:, None], atol=1e-5)
    for options, words in (
        ({"layers": [6]}, "layers must be in 0 to 5"),
        ({"mode": "absolute"}, "'relative' for latents of layers"),
    ):
        with pytest.raises(ValueError, match=words):
            walk(generator, latent, normal, **options)
    with pytest.raises(ValueError, match="layers must be None"):
        walk(styles(), latent[0], normal, layers=[0])
