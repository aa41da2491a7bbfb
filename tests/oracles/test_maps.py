"""Maps of codes beside scikit-learn's exact ones, from the same start."""

import numpy as np
import pytest

from perturb.internals import map_quality, tsne
from perturb.internals.codes import components, scatter

manifold = pytest.importorskip("sklearn.manifold")
decomposition = pytest.importorskip("sklearn.decomposition")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def points():
    rng = np.random.default_rng(0)
    return rng.normal(size=(240, 12)) + 3 * rng.normal(size=(8, 12))[np.arange(240) % 8]


@pytest.mark.parametrize("perplexity", [10, 30])
def test_tsne_ends_where_theirs_does(points, perplexity):
    # The usual size of a random start, small beside the map that it becomes.
    start = 1e-4 * np.random.default_rng(1).normal(size=(240, 2)).astype(np.float32)
    for init in (None, start):
        ours = tsne(points, perplexity=perplexity, start=init)
        other = manifold.TSNE(method="exact", init=ours.start.copy(), perplexity=perplexity)
        places = other.fit_transform(points)
        # Two descents of a function with many valleys: places differ, how well they fit does not.
        assert ours.divergence == pytest.approx(other.kl_divergence_, rel=0.01)
    theirs = manifold.trustworthiness(points, places, n_neighbors=12)
    found = map_quality(points, places, near=12)
    assert found.trustworthiness == pytest.approx(theirs, abs=1e-6)


def test_components_are_theirs(points):
    other = decomposition.PCA(5).fit(points)
    found = components(scatter(points), 5)
    np.testing.assert_allclose(found.variances, other.explained_variance_, rtol=1e-8)
    cosines = np.abs((found.directions * other.components_).sum(1))
    np.testing.assert_allclose(cosines, 1, atol=1e-8)
