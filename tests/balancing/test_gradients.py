"""One update from K losses: every way of getting the Gram matrix, against gradients written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl import backbones
from jaxdrl.balancing import gradients, marble

K = 3


def _network(params, x):
    hidden = jnp.tanh(x @ params["first"]["kernel"])
    return hidden @ params["final_linear"]["kernel"] + params["final_linear"]["bias"]


def _losses(params, batch):
    """K squared errors with masks of their own, and a quadratic 'KL' term."""
    out = _network(params, batch["x"])
    defined = jnp.isfinite(batch["target"])
    per = jnp.where(defined, (out - jnp.where(defined, batch["target"], 0.0)) ** 2, 0.0)
    sums, count = per.sum(axis=0), jnp.float32(len(out))
    weights = jnp.append(defined.sum(axis=0).astype(jnp.float32), count)
    return jnp.append(sums, 0.01 * (out**2).sum()), (weights, {"size": (jnp.abs(out).sum(), count)})


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    params = {
        "first": {"kernel": jnp.asarray(rng.normal(size=(5, 8)), jnp.float32)},
        "final_linear": {"kernel": jnp.asarray(rng.normal(size=(8, K)) * 0.3, jnp.float32), "bias": jnp.zeros(K)},
    }
    target = rng.normal(size=(24, K)).astype(np.float32)
    target[:, 1] = -target[:, 0] + 0.1 * target[:, 1]
    target[::4, 2] = np.nan
    return params, {"x": jnp.asarray(rng.normal(size=(24, 5)), jnp.float32), "target": jnp.asarray(target)}


def _separate(params, batch):
    """g_1 .. g_K and the KL gradient, one `jax.grad` each."""

    def one(k):
        def loss(params):
            sums, (weights, _) = _losses(params, batch)
            return sums[k] / weights[k]

        return jax.grad(loss)(params)

    return [one(k) for k in range(K + 1)]


def _flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _call(problem, settings, state=None, step=0):
    state = gradients.initial(K) if state is None else state
    function = jax.jit(lambda p, b, s, i: gradients.balanced(_losses, p, b, s, i, settings))
    return function(*problem, state, jnp.int32(step))


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_exact_is_the_papers_direction(problem, micro_batches):
    found, state, metrics = _call(problem, gradients.Settings(gram="exact", micro_batches=micro_batches))
    parts = [_flat(part) for part in _separate(*problem)]
    norms = np.array([np.linalg.norm(part) for part in parts[:-1]])
    units = np.stack([part / norm for part, norm in zip(parts[:-1], norms, strict=True)])
    alpha = np.asarray(marble.min_norm_weights(jnp.asarray(units @ units.T, jnp.float32)))
    expected = norms.mean() * alpha @ units + parts[-1]
    np.testing.assert_allclose(_flat(found), expected, rtol=2e-4, atol=2e-6)
    np.testing.assert_allclose(metrics["alpha"], alpha, atol=1e-4)
    np.testing.assert_allclose(metrics["gram_norm"], norms, rtol=1e-4)
    assert (np.asarray(metrics["cosine"]) > -1e-4).all() and float(metrics["conflict_rate"]) > 0
    assert metrics["worst_cosine"] == metrics["cosine"].min() and "gram" not in metrics
    np.testing.assert_allclose(state.alpha, alpha, atol=1e-4)


def test_the_plain_sum_is_compared_with(problem):
    settings, plain = gradients.Settings(gram="exact"), np.array([0.1, 3.0, 0.2], np.float32)
    *_, metrics = jax.jit(
        lambda p, b: gradients.balanced(_losses, p, b, gradients.initial(K), jnp.int32(0), settings, jnp.asarray(plain))
    )(*problem)
    parts = np.stack([_flat(part) for part in _separate(*problem)[:-1]])
    total = plain @ parts
    cosines = parts @ total / np.linalg.norm(parts, axis=1) / np.linalg.norm(total)
    assert float(metrics["worst_cosine_of_sum"]) == pytest.approx(cosines.min(), abs=1e-4)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_combined_is_the_weighted_sum_of_gradients(problem, micro_batches):
    coefficients = jnp.array([0.5, 0.0, 2.0, 1.0])
    function = jax.jit(lambda p, b: gradients.combined(_losses, p, b, coefficients, micro_batches))
    found, metrics = function(*problem)
    expected = sum(c * _flat(part) for c, part in zip(np.asarray(coefficients), _separate(*problem), strict=True))
    np.testing.assert_allclose(_flat(found), expected, rtol=2e-4, atol=2e-6)
    assert float(metrics["size"]) == pytest.approx(float(jnp.abs(_network(problem[0], problem[1]["x"])).sum() / 24), rel=1e-5)


def test_amortised_solves_every_nth_step_and_keeps_its_weights(problem):
    settings = gradients.Settings(gram="amortised", program=marble.Settings(solve_every=3, decay=0.5))
    full, state, _ = _call(problem, settings, step=0)
    np.testing.assert_allclose(_flat(full), _flat(_call(problem, gradients.Settings(gram="exact"))[0]), rtol=1e-5, atol=1e-7)
    given = state._replace(alpha=jnp.array([0.2, 0.3, 0.5]))
    between, kept, metrics = _call(problem, settings, given, step=1)
    expected = sum(c * _flat(part) for c, part in zip((0.2, 0.3, 0.5, 1.0), _separate(*problem), strict=True))
    np.testing.assert_allclose(_flat(between), expected, rtol=2e-4, atol=2e-6)
    np.testing.assert_array_equal(kept.alpha, given.alpha)
    _, moved, _ = _call(problem, settings, given, step=3)
    np.testing.assert_allclose(moved.alpha, 0.5 * given.alpha + 0.5 * state.alpha, atol=1e-5)
    np.testing.assert_array_equal(metrics["alpha"], given.alpha)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_sketch_is_the_gram_of_the_chosen_layers(problem, micro_batches):
    """Averaged over steps, norms by their ratios, and the gradient is of all layers."""
    settings = gradients.Settings(gram="sketch", average=0.6, micro_batches=micro_batches)
    found, state, metrics = _call(problem, settings)
    params, batch = problem
    part = jax.tree.map(lambda leaf: leaf[::micro_batches], batch)
    parts = [_flat(one["final_linear"]) for one in _separate(params, part)[:-1]]
    gram = np.array([[a @ b for b in parts] for a in parts])
    np.testing.assert_allclose(state.gram, gram, rtol=1e-4, atol=1e-7)
    alpha, norms = marble.balance(jnp.asarray(gram, jnp.float32), settings.program)
    coefficients = np.append(np.asarray(alpha * norms.mean() / norms), 1.0)
    expected = sum(c * _flat(one) for c, one in zip(coefficients, _separate(params, batch), strict=True))
    np.testing.assert_allclose(_flat(found), expected, rtol=1e-3, atol=1e-5)
    _, second, _ = _call(problem, settings, state._replace(gram=2 * state.gram), step=1)
    np.testing.assert_allclose(second.gram, 1.6 * gram, rtol=1e-4, atol=1e-7)
    assert metrics["alpha"].shape == (K,)


def test_a_sketch_of_all_layers_is_exact(problem):
    exact, state, metrics = _call(problem, gradients.Settings(gram="exact"))
    sketch, sketched, found = _call(problem, gradients.Settings(gram="sketch", layers=("",)))
    np.testing.assert_allclose(_flat(sketch), _flat(exact), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(sketched.gram, state.gram, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["alpha"], metrics["alpha"], atol=1e-4)


def test_the_default_sketch_is_a_kernel_between_samples(problem):
    """Losses that share their residuals, l_k = sum_i w_ki L_i: G = W H W^T with H_ij = (<a_i, a_j> + 1) <d_i, d_j>, up to scale."""
    params, batch = problem
    rng = np.random.default_rng(1)
    weights, target = rng.normal(size=(24, 4)).astype(np.float32), rng.normal(size=(24, K)).astype(np.float32)

    def losses(params, part):
        per_sample = ((_network(params, part["x"]) - part["target"]) ** 2).sum(axis=1)
        count = jnp.full(5, len(per_sample), jnp.float32)
        return jnp.append(per_sample @ part["weights"], 0.0), (count, {})

    given = {"x": batch["x"], "target": jnp.asarray(target), "weights": jnp.asarray(weights)}
    settings = gradients.Settings(gram="sketch")
    step = jax.jit(lambda: gradients.balanced(losses, params, given, gradients.initial(4), jnp.int32(0), settings))
    _, state, _ = step()
    inputs = np.tanh(np.asarray(batch["x"]) @ np.asarray(params["first"]["kernel"]))
    residuals = 2 * (np.asarray(_network(params, batch["x"])) - target)
    kernel = (inputs @ inputs.T + 1) * (residuals @ residuals.T)
    expected = weights.T @ kernel @ weights / 24**2
    np.testing.assert_allclose(state.gram, expected, rtol=1e-3, atol=1e-4 * expected.max())
    assert np.abs(expected - np.diag(np.diag(expected))).max() > 0.1 * expected.max()


@pytest.mark.parametrize("name", ["SiT-S/2", "REPA-SiT-B/2", "JiT-B/16", "DiTDH-S"])
def test_the_default_sketch_is_of_the_last_linear_layer(name):
    network = backbones.create(name, scan_layers=True)
    params = jax.eval_shape(network.init, jax.random.key(0))
    chosen = gradients.matching(params, gradients.Settings().layers)
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    taken = {
        jax.tree_util.keystr(path, simple=True, separator="/") for (path, _), take in zip(leaves, chosen, strict=True) if take
    }
    layer = "final_linear" if "SiT" in name else "final_layer/linear"
    assert taken == {f"{layer}/kernel", f"{layer}/bias"}


def test_the_sketchs_backward_pass_ends_behind_its_layers(problem):
    """Operations of a step hardly grow with K, as the compiler counts them; the exact Gram matrix costs K + 1 backward passes."""

    def flops(settings, count):
        def losses(params, batch):
            sums, (weights, metrics) = _losses(params, batch)
            rows = jnp.arange(count) % K
            return jnp.append(sums[rows], sums[-1]), (jnp.append(weights[rows], weights[-1]), metrics)

        wide = {"first": {"kernel": jnp.ones((256, 256))}, "final_linear": {"kernel": jnp.ones((256, K)), "bias": jnp.zeros(K)}}
        batch = {"x": jnp.ones((64, 256)), "target": jnp.ones((64, K))}
        step = jax.jit(lambda p, b: gradients.balanced(losses, p, b, gradients.initial(count), jnp.int32(0), settings)[0])
        return step.lower(wide, batch).compile().cost_analysis()["flops"]

    sketch = [flops(gradients.Settings(gram="sketch"), count) for count in (1, 8)]
    exact = flops(gradients.Settings(gram="exact"), 1)
    assert sketch[1] < 1.15 * sketch[0] and sketch[0] < 1.2 * exact


def test_a_reward_without_samples_has_no_say(problem):
    params, batch = problem
    nothing = batch | {"target": batch["target"].at[:, 1].set(jnp.nan)}
    for gram in gradients.GRAMS:
        found, _, metrics = _call((params, nothing), gradients.Settings(gram=gram))
        assert np.isfinite(_flat(found)).all() and float(metrics["alpha"][1]) == 0


def test_settings_out_of_range_are_told(problem):
    for changes in ({"gram": "guess"}, {"average": 1.0}, {"micro_batches": 0}, {"layers": ()}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            gradients.Settings(**changes)
    with pytest.raises(ValueError, match="does not divide"):
        gradients.split(problem[1], 5)
    with pytest.raises(ValueError, match="no parameter matches head"):
        gradients.matching(problem[0], ("head",))
