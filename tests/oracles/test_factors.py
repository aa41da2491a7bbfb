"""Components, eigenvectors and boundaries against scikit-learn and scipy."""

import jax
import numpy as np

from gan_dissect import attribute_direction, ganspace, sefa

RNG = np.random.default_rng(0)


def test_ganspace_is_pca():
    from sklearn.decomposition import PCA

    x = RNG.standard_normal((400, 30)) @ RNG.standard_normal((30, 30)) + 3
    found = ganspace(x, k=8)
    pca = PCA(8, svd_solver="full").fit(x)
    # Eigenvectors have no sign: ours is turned to theirs.
    signs = np.sign((pca.components_ * found.directions).sum(1))
    assert np.abs(found.directions - signs[:, None] * pca.components_).max() < 1e-5
    np.testing.assert_allclose(found.values**2, pca.explained_variance_, rtol=1e-6)
    np.testing.assert_allclose(found.share, pca.explained_variance_ratio_, rtol=1e-6)
    np.testing.assert_allclose(found.mean, pca.mean_, atol=1e-9)


def test_sefa_is_scipys_eigenvectors():
    import scipy.linalg

    a = RNG.standard_normal((24, 90))
    found = sefa(a, k=6, normalise=False)
    values, vectors = scipy.linalg.eigh(a @ a.T)
    wanted = vectors[:, ::-1][:, :6].T
    signs = np.sign((wanted * found.directions).sum(1))
    assert np.abs(found.directions - signs[:, None] * wanted).max() < 1e-5
    np.testing.assert_allclose(found.values, values[::-1][:6], rtol=1e-9)


def test_boundary_is_that_of_sklearn():
    """The same objective, fitted on the same extremes: the same hyperplane."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    z = np.asarray(jax.random.normal(jax.random.key(0), (2000, 12)))
    # Noise, so that the classes overlap and the optimum is not at infinity.
    scores = z @ RNG.standard_normal(12) + 0.5 * RNG.standard_normal(2000)
    found = attribute_direction(z, scores, extremes=0.5, train=0.7)
    order = np.argsort(scores, kind="stable")
    keys = jax.random.split(jax.random.key(0), 2)
    low, high = (
        part[np.asarray(jax.random.permutation(k, 1000))]
        for part, k in zip((order[:1000], order[1000:]), keys, strict=True)
    )
    fit, held = (np.concatenate([low[s], high[s]]) for s in (slice(700), slice(700, None)))
    labels = np.repeat([0, 1], 700)
    # Half the penalty times the squared length beside the mean loss, latents scaled to variance 1.
    model = LogisticRegression(C=1 / (0.01 * 1400), tol=1e-8, max_iter=1000)
    model.fit((z[fit] - z.mean(0)) / z.std(), labels)
    normal = model.coef_[0] / np.linalg.norm(model.coef_[0])
    np.testing.assert_allclose(found.normal, normal, atol=1e-4)
    area = roc_auc_score(np.repeat([0, 1], 300), z[held] @ found.normal)
    np.testing.assert_allclose(found.auc_test, area, atol=1e-12)
