"""Taps: names, and what comes back under them, against Linen's own record and hand-written nets."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import taps


class Fire(nn.Module):
    """A module whose two branches join, called by name, twice, and under remat."""

    narrow: int
    wide: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.narrow, (1, 1), name="squeeze")(x))
        left = nn.relu(nn.Conv(self.wide, (1, 1), name="expand1x1")(x))
        right = nn.relu(nn.Conv(self.wide, (3, 3), name="expand3x3")(x))
        return jnp.concatenate([left, right], -1)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), name="stem")(x)
        x = nn.relu(x)
        # Called twice: the second call has the same weights and names of its own.
        fire = Fire(3, 4, name="fire")
        x = fire(fire(x))
        x = nn.remat(Fire)(3, 4, name="saved")(x)
        x = x + nn.silu(nn.BatchNorm(use_running_average=True, name="norm")(x))
        return nn.Dense(5, name="head")(x.mean((1, 2)))


FIRE = ["squeeze", "relu", "expand1x1", "relu#2", "expand3x3", "relu#3"]
NAMES = [
    *["stem", "relu"],
    *[f"fire/{n}" for n in FIRE],
    "fire",
    *[f"fire#2/{n}" for n in FIRE],
    "fire#2",
    *[f"saved/{n}" for n in FIRE],
    *["saved", "norm", "silu", "head", "Net"],
]


@pytest.fixture(scope="module")
def net():
    module = Net()
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(1), x)
    leaves, tree = jax.tree.flatten(shapes)
    # No zero biases or unit variances: a value read at the wrong place must show.
    random = np.random.default_rng(0)
    leaves = [jnp.asarray(random.uniform(0.1, 0.6, a.shape), jnp.float32) for a in leaves]
    return module, jax.tree.unflatten(tree, leaves), x


def plain(w, x):
    """Nested jit, checkpoint, custom_jvp and custom_vjp, without any module."""

    @jax.jit
    def block(x):
        return jax.nn.relu(x @ w["a"]) * 2

    x = block(x)
    x = jax.checkpoint(lambda x: jnp.sin(x @ w["b"]) + x)(x)
    x = soft(straight(x))
    return jnp.tanh(block(x) @ w["c"]).sum(-1)


@jax.custom_vjp
def straight(x):
    """Rounds, and passes the gradient as it is."""
    return jnp.round(taps.tag(x * 4, "inside")) / 4


straight.defvjp(lambda x: (straight(x), None), lambda _, g: (g,))


@jax.custom_jvp
def soft(x):
    return jax.nn.silu(x)


# Not the slope of silu: it shows whether the rule is used or the function differentiated.
soft.defjvp(lambda x, t: (soft(*x), 3 * t[0]))

PLAIN = ["dense_1", "relu", "block", "dense_2", "inside", "round", "straight"]
PLAIN += ["silu", "soft", "dense_3", "relu#2", "block#2", "dense_4"]


@pytest.fixture(scope="module")
def weights():
    keys = jax.random.split(jax.random.key(3), 3)
    return {n: jax.random.normal(k, (4, 4)) for n, k in zip("abc", keys, strict=True)}


def test_names_are_the_paths_of_linen_variables_in_execution_order(net):
    module, variables, x = net
    names = taps.names(module.apply, variables, x)
    assert list(names) == NAMES
    paths = {
        "/".join(k.key for k in path[1:-1])
        for path, _ in jax.tree_util.tree_leaves_with_path(variables)
    }
    assert paths <= set(names)
    assert names["fire#2/expand3x3"] == jax.ShapeDtypeStruct((2, 4, 4, 4), jnp.float32)
    shapes = jax.eval_shape(lambda: (variables, x))
    assert taps.names(module.apply, *shapes) == names


def test_names_of_a_plain_function(weights):
    assert list(taps.names(plain, weights, jnp.ones((3, 4)))) == PLAIN


@pytest.mark.slow_cases
@pytest.mark.parametrize("wrap", ["jit", "checkpoint", "vmap", "grad", "value_and_grad"])
def test_transformed_functions_keep_their_names(net, wrap):
    module, variables, x = net

    def f(v, x):
        return module.apply(v, x).sum() if "grad" in wrap else module.apply(v, x)

    if wrap == "vmap":
        g = jax.vmap(lambda v, x: f(v, x[None])[0], (None, 0))
    else:
        g = getattr(jax, wrap)(f)
    # The gradient does not depend on the value.
    names = NAMES[:-2] if wrap == "grad" else NAMES[:-1]
    expected = taps.read(module.apply, names)(variables, x)[1]
    found = taps.read(g, names)(variables, x)[1]
    for name in names:
        np.testing.assert_allclose(found[name].reshape(expected[name].shape), expected[name], 1e-5)


def test_activations_are_those_that_linen_records(net):
    module, variables, x = net
    logits, state = module.apply(variables, x, capture_intermediates=True)
    record = {}
    for path, calls in jax.tree_util.tree_leaves_with_path(
        state["intermediates"], is_leaf=lambda node: isinstance(node, tuple)
    ):
        parts = [k.key for k in path[:-1]]
        for i, value in enumerate(calls):
            # The second call of `fire` is the second of all that is in it.
            if i and parts[0] == "fire":
                record["/".join(["fire#2", *parts[1:]])] = value
            else:
                record["/".join(parts) or "Net"] = value
    assert len(record) == 16
    outputs, values = taps.read(module.apply, list(record))(variables, x)
    assert (outputs == logits).all()
    for name, value in record.items():
        assert (values[name] == value).all(), name


@pytest.mark.slow_cases
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
@pytest.mark.parametrize("which", ["net", "plain"])
def test_identity_edits_and_splits_are_exact(net, weights, which, transform):
    module, variables, x = net
    f, args, names = module.apply, (variables, x), ["stem", "fire/relu#2", "fire#2", "saved/relu"]
    if which == "plain":
        f, args = plain, (weights, jax.random.normal(jax.random.key(4), (3, 4)))
        names = PLAIN[1::3]
    expected = transform(f)(*args)
    everything = taps.edit(f, {name: lambda a: a for name in taps.names(f, *args)})
    assert (transform(everything)(*args) == expected).all()
    for name in names:
        prefix, suffix = taps.split(f, name)
        read = transform(taps.read(f, name))(*args)
        assert (read[0] == expected).all()
        if transform is jax.jit:
            whole = jax.jit(lambda *args, p=prefix, s=suffix: s(*p(*args)))
            assert (whole(*args) == expected).all(), name
        else:
            activation, live = prefix(*args)
            assert (activation == read[1][name]).all()
            assert (suffix(activation, live) == expected).all(), name


def test_split_compiled_in_two_agrees_with_the_whole(net):
    module, variables, x = net
    for name in ("stem", "fire#2/relu", "norm"):
        prefix, suffix = map(jax.jit, taps.split(module.apply, name))
        np.testing.assert_allclose(
            suffix(*prefix(variables, x)), module.apply(variables, x), rtol=1e-5, atol=1e-6
        )


def test_an_edit_equals_the_net_written_with_it(net):
    module, variables, x = net
    units = jnp.arange(8.0).reshape(1, 1, 1, 8) % 2

    class Edited(Net):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3), name="stem")(x)) * units
            fire = Fire(3, 4, name="fire")
            x = fire(fire(x) * 0)
            x = nn.remat(Fire)(3, 4, name="saved")(x)
            x = x + nn.silu(nn.BatchNorm(use_running_average=True, name="norm")(x))
            return nn.Dense(5, name="head")(x.mean((1, 2)))

    g = taps.edit(module.apply, {"relu": lambda a: a * units, "fire": jnp.zeros_like})
    assert (g(variables, x) == Edited().apply(variables, x)).all()
    assert (taps.edit(module.apply, {})(variables, x) == module.apply(variables, x)).all()
    # A later edit sees what the earlier one made.
    seen = {}
    g = taps.edit(
        module.apply, {"fire": lambda a: seen.setdefault("fire", a), "stem": lambda a: -a}
    )
    g(variables, x)
    negated = taps.edit(module.apply, {"stem": lambda a: -a})
    assert (seen["fire"] == taps.read(negated, "fire")(variables, x)[1]["fire"]).all()


def test_two_names_of_one_value_edit_it_in_turn():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Sequential([nn.Dense(2), nn.relu, nn.Dense(2)], name="body")(x).sum()

    x = jnp.ones((1, 2))
    f = Outer().apply
    v = Outer().init(jax.random.key(0), x)
    assert list(taps.names(f, v, x)) == [
        "body/Dense_0",
        "body/relu",
        "body/Dense_1",
        "body",
        "Outer",
    ]
    g = taps.edit(f, {"body": lambda a: a * 0 + 3, "body/Dense_1": lambda a: a * a})
    # 3 under one name, then squared under the other: 9 in each of two outputs.
    assert g(v, x) == 18


def test_tags_come_first(weights):
    def f(x):
        return taps.tag(jax.nn.relu(x), "relu") + taps.tag(taps.tag(x, "twice") * 2, "twice")

    assert list(taps.names(f, 1.0)) == ["relu#2", "relu", "twice", "twice#2"]
    # relu(1) + 1, and 1 * 2 * 10.
    assert taps.edit(f, {"relu": lambda a: a + 1, "twice#2": lambda a: a * 10})(1.0) == 22
    # Nothing of it is left in the compiled program.
    untagged = jax.jit(lambda x: jax.nn.relu(x) + x * 2).lower(1.0).as_text()
    assert jax.jit(f).lower(1.0).as_text().count("stablehlo.") == untagged.count("stablehlo.")


# In float64: the central difference is good to about 1e-10 of a smooth function.
STEPS = (1e-5, -1e-5)


def smooth(w, x):
    @jax.jit
    def block(x):
        return jnp.tanh(taps.tag(x @ w["a"], "product"))

    x = block(x)
    x = x + jax.checkpoint(lambda x: jax.nn.silu(block(x) @ w["b"]))(x)
    return (block(x) @ w["c"]).sum()


def test_gradients_agree_with_differences(weights):
    with jax.enable_x64(True):
        w = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), weights)
        x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)))
        g = taps.edit(smooth, {"silu": jnp.sin, "product#2": lambda a: a * a})
        prefix, suffix = taps.split(smooth, "product#2")
        activation, live = prefix(w, x)
        for f, point in [
            (lambda t: g(t, x), w),
            (lambda t: suffix(t, live), activation),
            (lambda t: suffix(*prefix(w, t)), x),
            (lambda t: suffix(activation, taps.Live(t, live.signature)), live.values),
        ]:
            random = np.random.default_rng(9)
            along = jax.tree.map(lambda a, r=random: r.normal(size=a.shape), point)

            @jax.jit
            def slopes(point, along, f=f):
                up, down = (jax.tree.map(lambda a, b, h=h: a + h * b, point, along) for h in STEPS)
                products = jax.tree.map(lambda a, b: (a * b).sum(), jax.grad(f)(point), along)
                return jax.tree.reduce(jnp.add, products), (f(up) - f(down)) / (2 * STEPS[0])

            gradient, differences = slopes(point, along)
            # Two zeros would agree as well.
            assert abs(differences) > 1e-3
            np.testing.assert_allclose(gradient, differences, rtol=1e-6)


def test_gradients_of_a_net_edited_and_split_by_identity_are_its_own(net):
    module, variables, x = net
    edited = taps.edit(module.apply, {"saved/relu": lambda a: a, "fire": lambda a: a})
    prefix, suffix = taps.split(module.apply, "saved/expand1x1")

    @jax.jit
    def gradients(variables, x):
        nets = (module.apply, edited, lambda v, x: suffix(*prefix(v, x)))
        return [jax.grad(lambda x, f=f: f(variables, x)[:, 0].sum())(x) for f in nets]

    expected, *found = gradients(variables, x)
    for gradient in found:
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_custom_derivatives_survive_unless_opened():
    # The output of a custom_jvp is tapped outside of it: relu keeps its zero slope at zero.
    f = lambda x: jax.nn.relu(x) * 3  # noqa: E731
    assert jax.grad(taps.edit(f, {"relu": lambda a: a}))(0.0) == 0
    assert jax.grad(lambda x: taps.read(f, "relu")(x)[1]["relu"])(0.0) == 0
    # The rule's 3 times the edit's 2; through silu itself it would be less than 3.
    assert jax.grad(taps.edit(soft, {"silu": lambda a: a * 2}))(1.0) == 6
    rounded = lambda x: straight(x).sum()  # noqa: E731
    assert jax.grad(taps.edit(rounded, {"straight": lambda a: a * 2}))(0.3) == 2
    # A value within one opens it, and the derivative is that of the equations: round has none.
    opened = taps.edit(rounded, {"inside": lambda a: a})
    assert opened(0.3) == rounded(0.3)
    assert jax.grad(opened)(0.3) == 0


def test_a_call_that_goes_on_with_what_it_returns():
    for wrap in (jax.jit, jax.checkpoint):

        @wrap
        def inner(x):
            h = jax.nn.relu(x)
            return h, taps.tag(h * 2, "t"), h

        def f(x, inner=inner):
            return sum(inner(x))

        # h + 2 h + h with h = 2; below, 2 h + 1 = 3 beside two of 1.
        assert taps.edit(f, {"relu": lambda a: a + 1})(1.0) == 8
        assert taps.edit(f, {"t": lambda a: a + 1})(1.0) == 5
        prefix, suffix = taps.split(f, "relu")
        activation, live = prefix(1.0)
        assert (suffix(activation + 1, live), live.values) == (8, ())


def test_the_suffix_holds_nothing_of_the_prefix(net):
    module, variables, x = net
    # Ten in all: one in the stem and three in each of three calls of Fire.
    for name, convolutions in [("relu", 9), ("fire", 6), ("fire#2/squeeze", 5), ("saved", 0)]:
        prefix, suffix = taps.split(module.apply, name)
        activation, live = prefix(variables, x)
        program = jax.make_jaxpr(suffix)(activation, live)
        assert count(program.jaxpr, "conv_general_dilated") == convolutions
        assert program.consts == []
    # Beside the cut: of the two branches, one is in the prefix and its value crosses.
    prefix, suffix = taps.split(module.apply, "saved/expand1x1")
    activation, live = prefix(variables, x)
    assert count(jax.make_jaxpr(suffix)(activation, live).jaxpr, "conv_general_dilated") == 0
    # The other branch's map of four channels.
    assert (2, 4, 4, 4) in [a.shape for a in live.values]
    # What only spreads a weight over the batch is spread again, not carried.
    f = lambda b, x: taps.tag(x * 2, "t") + jnp.broadcast_to(b, x.shape)  # noqa: E731
    _, live = taps.split(f, "t")[0](jnp.ones(3), jnp.ones((4, 3)))
    assert [a.shape for a in live.values] == [(3,)]


def count(jaxpr, primitive):
    inner = sum(count(sub, primitive) for sub in jax.extend.core.subjaxprs(jaxpr))
    return inner + sum(eqn.primitive.name == primitive for eqn in jaxpr.eqns)


@pytest.mark.slow
def test_vmap(net):
    module, variables, x = net
    prefix, suffix = taps.split(module.apply, "fire")
    activation, live = prefix(variables, x)
    # All but one of the eight units off, eight times over.
    units = jnp.eye(8).reshape(8, 1, 1, 1, 8)
    many = jax.jit(jax.vmap(lambda unit: suffix(activation * unit, live)))(units)
    also = jax.vmap(suffix, (0, None))(activation[None] * units, live)
    assert many.shape == (8, 2, 5)
    for unit, logits, same in zip(units, many, also, strict=True):
        edited = taps.edit(module.apply, {"fire": lambda a, unit=unit: a * unit})(variables, x)
        np.testing.assert_allclose(logits, edited, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(same, edited, rtol=1e-5, atol=1e-6)
    # Over the images, one by one, with a batched prefix and live values.
    single = lambda x: module.apply(variables, x[None])[0]  # noqa: E731
    g = taps.edit(single, {"fire": lambda a: a * 2})
    whole = taps.edit(module.apply, {"fire": lambda a: a * 2})(variables, x)
    np.testing.assert_allclose(jax.vmap(g)(x), whole, rtol=1e-5, atol=1e-6)
    prefix, suffix = taps.split(single, "fire#2/relu#2")
    whole = module.apply(variables, x)
    np.testing.assert_allclose(jax.vmap(suffix)(*jax.vmap(prefix)(x)), whole, 1e-5, 1e-6)


def test_each_function_is_traced_once_for_its_shapes(weights):
    x, once = jnp.ones((3, 4)), [(3, 4)]
    for make in (
        lambda f: taps.edit(f, {"relu": jnp.tanh, "inside": jnp.tanh}),
        lambda f: taps.read(f, ["relu", "inside"]),
        lambda f: (lambda p, s: lambda w, x: s(*p(w, x)))(*taps.split(f, "relu#2")),
    ):
        traces = []

        def f(weights, x, traces=traces):
            traces.append(x.shape)
            return plain(weights, x)

        g = jax.jit(make(f))
        g(weights, x)
        g(jax.tree.map(jnp.negative, weights), x + 1)
        # Twice the call, one trace: weights and pictures of the same shapes.
        assert traces == once
        g.lower(weights, x[:1])
        assert traces == [*once, (1, 4)]
        # Other taps of the same function, and calls without jit, use the same trace.
        make(f)(weights, x)
        assert list(taps.names(f, weights, x)) == PLAIN
        assert traces == [*once, (1, 4)]


def test_the_suffix_takes_another_batch(net):
    module, variables, x = net
    prefix, suffix = taps.split(module.apply, "fire#2")
    activation, live = prefix(variables, x)
    tripled = jnp.concatenate([activation * 3, activation, activation * 0])
    parts = [suffix(activation * s, live) for s in (3, 1, 0)]
    for run in (suffix, jax.jit(suffix)):
        np.testing.assert_allclose(run(tripled, live), jnp.concatenate(parts), 1e-5, 1e-6)
    # A skip connection has the batch: it must come along.
    prefix, suffix = taps.split(module.apply, "norm")
    activation, live = prefix(variables, x)
    with pytest.raises(
        ValueError, match=r"'norm' must be float32\[2, 4, 4, 8\] as the prefix gave"
    ):
        suffix(activation[:1], live)
    values = tuple(a[:1] if a.shape[0] == 2 else a for a in live.values)
    logits = suffix(activation[:1], taps.Live(values, live.signature))
    np.testing.assert_allclose(logits, module.apply(variables, x)[:1], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="must be float32"):
        suffix(activation.astype(jnp.int32), live)
    with pytest.raises(ValueError, match="must be float32"):
        suffix(activation[:, :3], live)


def test_a_weight_as_large_as_the_batch_is_no_batch():
    def f(w, x):
        return jnp.tanh(x @ w["first"] + w["bias"]) @ w["last"]

    # Three is the number of pictures too: only where a value comes from tells a batch.
    w = {"first": jnp.ones((3, 3)), "bias": jnp.ones((1, 3)), "last": jnp.ones((3, 2))}
    prefix, suffix = taps.split(f, "dense_1")
    x = jax.random.normal(jax.random.key(0), (3, 3))
    activation, live = prefix(w, x)
    np.testing.assert_allclose(suffix(activation[:2], live), f(w, x)[:2], rtol=1e-6)


def test_a_model_keeps_its_weights_as_arguments(net):
    module, variables, x = net
    model = perturb.Model(module.apply, variables, name="net")
    assert list(taps.names(model, x)) == NAMES
    g = taps.edit(model, {"fire": lambda a: a * 2})
    expected = taps.edit(module.apply, {"fire": lambda a: a * 2})(variables, x)
    assert (g(x) == expected).all()
    # What is made from a model is a pytree too, with the model's weights for leaves.
    program = jax.make_jaxpr(lambda g, x: g(x))(g, x)
    assert program.consts == []
    # The pictures and every weight; one that is closed over would be a constant.
    assert len(program.jaxpr.invars) == 1 + len(jax.tree.leaves(variables))
    prefix, suffix = taps.split(perturb.Model.__call__, "fire")
    assert (suffix(*prefix(model, x)) == model(x)).all()
    outputs, values = taps.read(model, "head")(x)
    assert (values["head"] == outputs).all()


@pytest.mark.slow
def test_closed_over_values(net):
    module, variables, x = net
    f = lambda x: module.apply(variables, x)  # noqa: E731
    prefix, suffix = taps.split(f, "fire")
    activation, live = prefix(x)
    assert jax.make_jaxpr(suffix)(activation, live).consts == []
    assert (suffix(activation, live) == f(x)).all()

    # Weights closed over from within a derivative are its tracers: taken anew on each call.
    def loss(variables, through):
        inner = lambda x: module.apply(variables, x)  # noqa: E731
        p, s = taps.split(inner, "saved/relu#2")
        edited = taps.edit(inner, {"fire": lambda a: a})
        return {"split": lambda: s(*p(x)), "edit": lambda: edited(x), "": lambda: inner(x)}[
            through
        ]().sum()

    expected = jax.grad(loss)(variables, "")
    for through in ("split", "edit"):
        found = jax.grad(loss)(variables, through)
        assert jax.tree.all(
            jax.tree.map(lambda a, b: np.allclose(a, b, 1e-4, 1e-5), found, expected)
        )


def test_a_constant_inside_an_opened_call():
    table = jnp.arange(12.0).reshape(3, 4)
    inner = jax.jit(lambda x: jnp.tanh(taps.tag(x @ table, "t")) * 2)
    f = lambda x: inner(x) + inner(x + 1)  # noqa: E731
    x = jnp.ones((2, 3)) / 40
    assert [n for n in taps.names(f, x) if n[0] == "t"] == ["t", "t#2"]
    g = taps.edit(f, {"t#2": lambda a: a * 0})
    assert (g(x) == inner(x)).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fire9", r"no activation named 'fire9'; nearest: .*fire.* \(taps.names lists all 27\)"),
        ("fire/squeezed", "nearest: fire/squeeze,"),
        ("fire#3", "nearest: fire#2,"),
        ("fire" * 3000, r"no activation named 'firefire.*\.\.\.; nearest: fire.{,150}$"),
    ],
)
def test_wrong_names_are_answered_with_the_nearest(net, name, message):
    module, variables, x = net
    for g in (
        taps.read(module.apply, name),
        taps.edit(module.apply, {name: lambda a: a}),
        taps.split(module.apply, name)[0],
    ):
        with pytest.raises(ValueError, match=message):
            g(variables, x)


def test_the_outermost_module_may_be_named_too(net):
    module, variables, x = net
    _, values = taps.read(module.apply, ["fire/squeeze", "Net/fire/squeeze"])(variables, x)
    assert (values["fire/squeeze"] == values["Net/fire/squeeze"]).all()

    def two(v, x):
        return module.apply(v, x) + module.apply(v, -x)

    names = list(taps.names(two, variables, x))
    assert names == [n for r in ("Net", "Net#2") for n in (*(f"{r}/{n}" for n in NAMES[:-1]), r)]


def test_effects_and_unused_outputs_are_kept():
    seen = []

    def f(x):
        y = taps.tag(x * 2, "y")
        jax.debug.callback(lambda v: seen.append(float(v)), y)
        return {"x": x, "three": 3.0, "y": y, "none": None}

    prefix, suffix = taps.split(f, "y")
    activation, live = prefix(1.0)
    # The callback lies after the cut, so the prefix must not have it.
    assert seen == []
    outputs = suffix(activation + 1, live)
    jax.effects_barrier()
    assert outputs == {"x": 1.0, "three": 3.0, "y": 3.0, "none": None}
    assert seen == [3.0]
