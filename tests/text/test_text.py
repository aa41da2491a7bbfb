"""Tokens through the solver and the attributions, on models that read words we know."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import text

VOCABULARY, LENGTH = 12, 40
PAD, FIRST = 0, 1


@pytest.fixture(scope="module")
def reader():
    """Class 1 wherever token 7 is, of which class 0 knows nothing; token 1 opens every text."""
    table = np.random.default_rng(0).normal(size=(VOCABULARY, 6)).astype(np.float32)
    # The identity beside the random embedding: the model reads a token's own column.
    extended = np.concatenate([table, np.eye(VOCABULARY, dtype=np.float32)], 1)

    def apply(w, x):
        found = x[..., 6 + 7].sum(1)
        # With the token the logit is 4, without it -4.
        return jnp.stack([jnp.zeros_like(found), 8 * found - 4], 1)

    return text.text_model(apply, (), extended, pad=PAD, special=[FIRST])


@pytest.fixture(scope="module")
def tokens():
    """Three texts without token 7, put in one place each."""
    rng = np.random.default_rng(1)
    found = rng.integers(2, 7, (3, LENGTH))
    found[:, 0] = FIRST
    found[[0, 1, 2], [5, 20, 33]] = 7
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stretch", [None, 3])
@pytest.mark.parametrize("fill", ["pad", "texts"])
def test_the_solver_finds_the_token(reader, tokens, fill, stretch):
    # Texts of tokens 2 to 6: the one that decides is in none of them.
    others = np.random.default_rng(2).integers(2, 7, (4, LENGTH))
    found = text.find(
        reader, tokens, [1, 1, 1], areas=0.1, operator=fill, texts=others, stretch=stretch, steps=30
    )
    kept = np.asarray(found.masks)[:, 0] > 0.5
    assert kept.shape == tokens.shape
    # A tenth of 40 tokens.
    assert (kept.sum(1) == 4).all()
    assert kept[[0, 1, 2], [5, 20, 33]].all()


@pytest.mark.slow
def test_words_are_kept_whole(reader, tokens):
    # Words of four tokens, as many as the area allows: exactly one can be kept.
    groups = np.repeat(np.arange(LENGTH // 4), 4)[None].repeat(3, 0)
    found = text.find(reader, tokens, [1, 1, 1], areas=0.1, groups=groups, steps=30)
    kept = np.asarray(found.masks)[:, 0] > 0.5
    for row, place in enumerate((5, 20, 33)):
        np.testing.assert_array_equal(kept[row], groups[row] == place // 4)


@pytest.mark.parametrize("method", text.tokens.METHODS)
def test_attributions_point_at_the_token(reader, tokens, method):
    found = text.attribute(reader, tokens, np.array([1, 1, 1]), method)
    assert found.shape == tokens.shape
    if method in ("integrated_gradients", "occlusion", "input_gradient"):
        assert (np.abs(found).argmax(1) == [5, 20, 33]).all()
    if method in ("integrated_gradients", "occlusion"):
        # Complete: of a linear reader, what the token adds is what it takes away.
        np.testing.assert_allclose(found.sum(1), 8, rtol=1e-4)


def test_special_tokens_stay(reader, tokens):
    embedded = reader.embed(tokens)[0]
    fill = text.fill(reader, "pad")
    image, other = fill.prepare(embedded, None)
    np.testing.assert_array_equal(other[0], image[0])
    np.testing.assert_array_equal(other[1:], jnp.broadcast_to(reader.table[PAD], other[1:].shape))


def test_erasure_has_its_two_ends(reader, tokens):
    """The right token alone is sufficient and all there is; the worst scores are neither."""
    fill = text.fill(reader, "pad")
    right = (tokens == 7).astype(float)
    best = text.erasure(reader, tokens, [1, 1, 1], right, operator=fill, areas=(0.025, 0.5))
    worst = text.erasure(reader, tokens, [1, 1, 1], -right, operator=fill, areas=(0.025, 0.5))
    # p with the token and 1 - p without it: they differ by 2 p - 1.
    p = float(jax.nn.sigmoid(4.0))
    np.testing.assert_allclose(best.sufficiency, 0, atol=1e-5)
    np.testing.assert_allclose(best.comprehensiveness, 2 * p - 1, atol=1e-5)
    np.testing.assert_allclose(worst.sufficiency, 2 * p - 1, atol=1e-5)
    np.testing.assert_allclose(worst.comprehensiveness, 0, atol=1e-5)


@pytest.mark.slow
def test_a_card_tells_evidence_from_none(reader, tokens):
    others = np.random.default_rng(2).integers(2, 7, (4, LENGTH))
    fills = {
        "pad": text.fill(reader, "pad"),
        "texts": text.fill(reader, "texts", texts=others),
    }
    good = text.card(reader, tokens[0], 1, tokens[0] == 7, fills)
    assert good.verdict == "evidence", good
    assert good.kept["texts"] == pytest.approx(good.whole, abs=1e-5)
    assert text.card(reader, tokens[0], 1, tokens[0] == 3, fills).verdict == "not sufficient"
    # All but one token keeps the answer, and so does the same mask almost anywhere.
    assert text.card(reader, tokens[0], 1, np.arange(LENGTH) != 9, fills).verdict == "anywhere"


def test_what_is_refused(reader, tokens):
    with pytest.raises(ValueError, match="method must be"):
        text.attribute(reader, tokens, np.array([1, 1, 1]), "lime")
    with pytest.raises(ValueError, match="fill must be"):
        text.fill(reader, "random")
    with pytest.raises(ValueError, match="table must be"):
        text.text_model(None, (), np.zeros((3, 2)), pad=5)


def test_the_byte_classifier():
    """The network in the installed package against its own runtime; needs the extra `magika`."""
    pytest.importorskip("magika")
    runtime = pytest.importorskip("onnxruntime")
    import importlib.resources

    from perturb.text import magika

    model = magika.load_magika()
    path = importlib.resources.files("magika") / "models/standard_v3_3/model.onnx"
    session = runtime.InferenceSession(path.read_bytes())
    files = (pathlib.Path(f) for f in (__file__, magika.__file__))
    data = np.stack([magika.tokens(f.read_bytes()) for f in files])
    # Their runtime ends in a softmax, our model before it.
    found = jax.nn.softmax(model.model(model.embed(data)), -1)
    wanted = session.run(None, {"bytes": data})[0]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert model.model.class_names[int(found[0].argmax())] == "python"


def test_a_page_colours_words():
    from launch.report import words

    page = words.coloured(["<b>", "so", "so"], [2.0, 0.0, -1.0])
    assert "&lt;b&gt;" in page
    assert [part.split(")")[0] for part in page.split("rgba(")[1:]] == [
        "196,98,16,0.70",
        "196,98,16,0.00",
        "24,96,180,0.35",
    ]
    with pytest.raises(ValueError, match="one for each of 3 words"):
        words.coloured(["a", "b", "c"], [1.0])
