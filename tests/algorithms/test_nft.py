"""DiffusionNFT against closed forms, against its code's formulas in NumPy, and on a small problem where the reward goes up."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdrl.algorithms import nft
from jaxdrl.algorithms.advantages import group_advantages
from jaxdrl.algorithms.flow_matching import TimeLaw
from jaxdrl.balancing import marble
from jaxdrl.balancing.accumulation import accumulate
from tests.flow.gaussians import gaussian_velocity

KEY = jax.random.key(0)


def _velocity(params, x, t, y):
    """Nonlinear in everything, and different for each label."""
    return jnp.tanh(x @ params["a"] + t[:, None] * params["b"] + params["c"][y])


def _params(seed, dim=3):
    a, b, c = jax.random.split(jax.random.key(seed), 3)
    return {
        "a": jax.random.normal(a, (dim, dim)),
        "b": jax.random.normal(b, (dim,)),
        "c": jax.random.normal(c, (2, dim)),
    }


def _buffer(size=8, dim=3, k=None, seed=0):
    random = np.random.default_rng(seed)
    advantages = random.uniform(-4, 4, size=size if k is None else (size, k))
    return nft.Buffer(
        jnp.asarray(random.normal(size=(size, dim)), jnp.float32),
        jnp.arange(size, dtype=jnp.int32) % 2,
        jnp.arange(size, dtype=jnp.uint32) + 11,
        jnp.asarray(advantages, jnp.float32),
    )


@partial(jax.jit, static_argnums=(2, 3))
def _mean_loss(params, batch, settings, micro_batches=1):
    """Gradient and metrics of the mean loss, with old policy and reference elsewhere."""
    function = lambda params, part: nft.loss(_velocity, params, _params(1), _params(2), part, KEY, settings)  # noqa: E731
    return accumulate(function, params, batch, micro_batches)


def _close(found, expected, tolerance=1e-5):
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale), found, expected)


def _official(params, old, reference, batch, key, settings, frozen=None):
    """The loss as scripts/train_nft_sd3.py writes it: noise at t = 1, v = noise - data, x = (1 - t) x0 + t noise; float64.

    `frozen` holds the weight factors of another call: they are constants of the gradient.
    """
    data, noise, t, labels = nft._noised(batch.samples, batch.labels, batch.seeds, key, settings)
    data, noise, t = (np.asarray(part, np.float64) for part in (data, noise, 1 - t))
    xt = (1 - t[:, None]) * data + t[:, None] * noise

    def predict(tree):
        tree = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
        return -np.tanh(xt @ tree["a"] + (1 - t)[:, None] * tree["b"] + tree["c"][np.asarray(labels)])

    forward, old_prediction, ref_prediction = predict(params), predict(old), predict(reference)
    limit, beta = settings.advantage_limit, settings.mixing
    r = np.clip(np.clip(np.asarray(batch.advantages, np.float64), -limit, limit) / limit / 2 + 0.5, 0, 1)
    r = np.repeat(r, settings.num_times)
    losses, factors = [], []
    for index, prediction in enumerate(
        (beta * forward + (1 - beta) * old_prediction, (1 + beta) * old_prediction - beta * forward)
    ):
        x0 = xt - t[:, None] * prediction
        factor = np.abs(x0 - data).mean(axis=1, keepdims=True).clip(min=1e-5) if frozen is None else frozen[index]
        factors.append(factor)
        losses.append(((x0 - data) ** 2 / factor).mean(axis=1))
    policy = (limit * (r * losses[0] / beta + (1 - r) * losses[1] / beta)).mean()
    if settings.loss_scale == "paper":
        policy = policy * beta / limit
    return policy + settings.kl_weight * ((forward - ref_prediction) ** 2).mean(), factors


OTHERS = {
    "mixing": 0.1,
    "loss_scale": "paper",
    "kl_weight": 0.5,
    "advantage_limit": 3.0,
    "times": TimeLaw(),
    "times_per_sample": 2,
}


@pytest.mark.parametrize("options", [{"kl_weight": 0.3}, OTHERS])
def test_loss_and_gradient_are_the_official_ones(options):
    settings = nft.Settings(**options)
    params, old, reference, batch = _params(0), _params(1), _params(2), _buffer(12)
    gradient, metrics = _mean_loss(params, batch, settings)
    expected, frozen = _official(params, old, reference, batch, KEY, settings)
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)
    shift = 1e-5
    for name in params:
        numeric = np.zeros(params[name].shape)
        for place in np.ndindex(numeric.shape):
            ends = []
            for sign in (1, -1):
                moved = {key: np.array(leaf, np.float64) for key, leaf in params.items()}
                moved[name][place] += sign * shift
                ends.append(_official(moved, old, reference, batch, KEY, settings, frozen)[0])
            numeric[place] = (ends[0] - ends[1]) / (2 * shift)
        np.testing.assert_allclose(gradient[name], numeric, rtol=1e-3, atol=1e-4 * np.abs(numeric).max())


@pytest.mark.parametrize("weighting", ["adaptive", "uniform"])
def test_branches_meet_at_the_old_policy(weighting):
    """At theta = theta_old: L+ = L-, and their gradients are opposite."""
    settings = nft.Settings(mixing=0.3, weighting=weighting, kl_weight=0.0)
    random = np.random.default_rng(0)
    old, target = (jnp.asarray(random.normal(size=(6, 4)), jnp.float32) for _ in range(2))
    t = jnp.linspace(0, 0.9, 6)
    positive, negative = nft.branch_losses(old, old, target, t, settings)
    np.testing.assert_array_equal(positive, negative)
    up, down = (jax.grad(lambda current, i=i: nft.branch_losses(current, old, target, t, settings)[i].sum())(old) for i in (0, 1))
    np.testing.assert_allclose(up, -down, rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(up).min()) > 0


def test_gradient_at_the_old_policy_goes_with_the_advantage():
    """(2 r - 1) times that of L+; none at all for an advantage of 0."""
    settings = nft.Settings(mixing=0.3, kl_weight=0.0)

    @jax.jit
    def gradients(advantages):
        rows = jax.tree.map(lambda leaf: leaf[:1], _buffer())
        value = lambda p, a: nft.loss(_velocity, p, _params(0), None, rows._replace(advantages=a[None]), KEY, settings)[0]  # noqa: E731
        return jax.vmap(jax.grad(value), (None, 0))(_params(0), advantages)["a"]

    full, half, nothing, opposite = gradients(jnp.asarray([5.0, 2.5, 0.0, -5.0]))
    assert float(jnp.abs(full).max()) > 0.1
    np.testing.assert_allclose(half, 0.5 * full, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(opposite, -full, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(nothing, 0, atol=1e-5)


def test_optimum_for_gaussian_data():
    """N(m, s^2), A = k (x - m): the optimum is v_old + k s^2 (1 - t) / (beta A_max var(x_t)) at every x, and is the loss's root.

    The loss is quadratic in a shift of the velocity at each time, so one Newton step from its gradient finds the root. With the
    same advantage for all, the exact old policy is itself the optimum: v_old is the mean of v+ and v-.
    """
    mean, std, slope, size, mixing = 0.4, 0.8, 0.9, 30_000, 0.5
    settings = nft.Settings(mixing=mixing, weighting="uniform", loss_scale="paper", kl_weight=0.0, times_per_sample=10)
    base = gaussian_velocity(mean, std)
    velocity = lambda shift, x, t, y: base(x, t) + shift[jnp.round(10 * t).astype(int)][:, None]  # noqa: E731
    data = mean + std * jax.random.normal(jax.random.key(1), (size, 1))
    batch = nft.Buffer(data, jnp.zeros(size, jnp.int32), jnp.arange(size, dtype=jnp.uint32))
    start = jnp.zeros(10)

    @jax.jit
    def gradient(shift, advantages):
        rows = batch._replace(advantages=advantages)
        return jax.grad(lambda shift: nft.loss(velocity, shift, start, None, rows, KEY, settings)[0] / size)(shift)

    found = -10 * gradient(start, slope * (data[:, 0] - mean)) / (2 * mixing**2)  # each time has a tenth of the weight
    t = np.arange(10) / 10
    expected = slope * std**2 * (1 - t) / (mixing * settings.advantage_limit * (t**2 * std**2 + (1 - t) ** 2))
    np.testing.assert_allclose(found, expected, atol=0.02)  # of .06 to .3; the Monte-Carlo error is .006
    constant = jnp.full(size, 4.0)
    np.testing.assert_allclose(10 * gradient(start, constant) / (2 * mixing**2), 0, atol=0.05)
    np.testing.assert_allclose(10 * gradient(start + 0.3, constant) / (2 * mixing**2), 0.3, atol=0.05)


def test_rewards_share_a_forward_pass():
    """[batch, K]: a row for each reward and one for the KL term; MARBLE's combined advantage gives the combination of the rows."""
    settings, params, batch = nft.Settings(kl_weight=0.3), _params(0), _buffer(12, k=3)
    rows, _ = _mean_loss(params, batch, settings)
    for weights in ([1.0, 0.0, 0.0], [0.5, 0.3, 0.2]):
        combined = marble.combined_advantage(batch.advantages.T, jnp.asarray(weights), marble.Settings())
        whole, _ = _mean_loss(params, batch._replace(advantages=combined), settings)
        _close(jax.tree.map(lambda leaf, w=weights: jnp.tensordot(jnp.asarray(w), leaf[:3], 1) + leaf[3], rows), whole)


def test_what_is_missing_or_broken_counts_nowhere():
    """The mean over some samples and the mean over the others are the mean over all, weighted by their numbers."""
    settings, params, batch = nft.Settings(kl_weight=0.3), _params(0), _buffer(12, k=3)
    whole, _ = _mean_loss(params, batch, settings)
    some = jnp.arange(12)[:, None] < jnp.asarray([5, 8, 0])
    first, _ = _mean_loss(params, batch._replace(advantages=jnp.where(some, batch.advantages, jnp.nan)), settings)
    second, _ = _mean_loss(params, batch._replace(advantages=jnp.where(some, jnp.nan, batch.advantages)), settings)
    share = jnp.asarray([5, 8, 0]) / 12
    joined = jax.tree.map(lambda a, b: jnp.einsum("k,k...", share, a[:3]) + jnp.einsum("k,k...", 1 - share, b[:3]), first, second)
    _close(joined, jax.tree.map(lambda leaf: leaf[:3].sum(axis=0), whole))
    assert all((leaf[2] == 0).all() for leaf in jax.tree.leaves(first))
    broken = batch._replace(samples=batch.samples.at[7].set(jnp.inf))
    without = batch._replace(advantages=batch.advantages.at[7].set(jnp.nan))
    _close(_mean_loss(params, broken, settings)[0], _mean_loss(params, without, settings)[0])


def test_a_split_or_a_new_order_changes_nothing():
    """Times and noise belong to samples."""
    settings, params, batch = nft.Settings(kl_weight=0.3), _params(0), _buffer(12)
    batch = batch._replace(advantages=batch.advantages.at[:5].set(jnp.nan))
    whole, metrics = _mean_loss(params, batch, settings)
    order = np.random.default_rng(3).permutation(12)
    for rows in (batch, jax.tree.map(lambda leaf: leaf[order], batch)):
        found, again = _mean_loss(params, rows, settings, 4)
        _close(found, whole, 1e-6)
        assert float(again["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-5)


def test_times_are_the_samplers_or_fresh():
    batch = _buffer(200)
    args = batch.samples, batch.labels, batch.seeds
    settings = nft.Settings(shift=3.0)
    noised = jax.jit(nft._noised, static_argnums=4)
    *_, t, _ = noised(*args, KEY, settings)
    rows = np.sort(np.asarray(t).reshape(200, 9), axis=1)
    grid = np.asarray(settings.grid)[:-1]
    assert np.isin(rows, grid).all() and (np.diff(rows, axis=1) > 0).all()  # 9 of 10, without repetition
    assert all(0 < (rows == time).any(axis=1).mean() < 1 for time in grid)
    _, noise, fresh, labels = noised(*args, KEY, nft.Settings(times=TimeLaw(), times_per_sample=3))
    assert len(np.unique(fresh)) == 600 == len(np.unique(np.asarray(noise)[:, 0]))
    np.testing.assert_array_equal(labels, np.repeat(batch.labels, 3))
    *_, other, _ = noised(*args, jax.random.key(1), settings)
    assert (np.asarray(other) != np.asarray(t)).mean() > 0.5


def test_collect_samples_with_any_sampler():
    velocity = lambda params, x, t, y: gaussian_velocity(params, 0.5)(x, t)  # noqa: E731
    noise, labels = jax.random.normal(KEY, (5000, 2)), jnp.zeros(5000, jnp.int32)
    settings = nft.Settings(num_steps=40)
    buffer, metrics = jax.jit(lambda mean: nft.collect(velocity, mean, noise, labels, KEY, settings))(jnp.float32(1.0))
    assert buffer.advantages is None and len(np.unique(buffer.seeds)) == 5000
    np.testing.assert_allclose(buffer.samples.mean(axis=0), 1, atol=0.02)
    np.testing.assert_allclose(buffer.samples.std(axis=0), 0.5, atol=0.02)
    assert float(metrics["sample_norm"]) == pytest.approx(1.25, abs=0.03)
    other, _ = nft.collect(velocity, jnp.float32(1.0), noise, labels, KEY, nft.Settings(), lambda v, x: v(x, jnp.zeros(len(x))))
    np.testing.assert_allclose(other.samples, velocity(1.0, noise, jnp.zeros(5000), labels), rtol=1e-6)
    with pytest.raises(ValueError, match="advantages"):
        nft.loss(velocity, 1.0, 1.0, 1.0, buffer, KEY, nft.Settings())


@pytest.mark.parametrize(
    ("preset", "steps", "expected"),
    [
        ("on_policy", [0, 1, 1000], [0, 0, 0]),
        ("default", [0, 1, 100, 500, 2000], [0, 0.001, 0.1, 0.5, 0.5]),
        ("slow", [0, 74, 75, 76, 175, 1000], [0, 0, 0, 0.0075, 0.75, 0.999]),
        ("marble", [1, 949, 951, 5000], [0.001, 0.949, 0.95, 0.95]),
    ],
)
def test_schedules_of_the_old_policy(preset, steps, expected):
    np.testing.assert_allclose([nft.PRESETS[preset].decay(step) for step in steps], expected, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(nft.PRESETS[preset].decay)(jnp.asarray(steps)), expected, atol=1e-6)


def test_state_keeps_four_policies_apart():
    settings, optimizer = nft.Settings(old_policy=nft.OldPolicy(slope=0.1)), optax.sgd(1.0)
    state = nft.create({"w": jnp.float32(1.0)}, optimizer)
    for _ in range(2):
        state = nft.apply_gradients(state, {"w": jnp.float32(1.0)}, optimizer, settings)
    average = 2 / 11 * 1.0 + 9 / 11 * 0.0
    average = 3 / 12 * average + 9 / 12 * -1.0
    values = [float(tree["w"]) for tree in (state.params, state.old, state.reference, state.ema)]
    np.testing.assert_allclose(values, [-1, 1, 1, average], rtol=1e-6)
    state = nft.update_old(state, settings)
    assert float(state.old["w"]) == pytest.approx(0.2 * 1 + 0.8 * -1) and float(state.reference["w"]) == 1
    assert jax.jit(lambda state: state, donate_argnums=0)(state).step == 2  # no array is in two places


@pytest.mark.parametrize(
    "options",
    [
        {"mixing": 0.0},
        {"advantage_limit": 0.0},
        {"kl_weight": -1.0},
        {"loss_scale": "none"},
        {"weighting": "none"},
        {"method": "rk4"},
        {"times_per_sample": 11},
        {"ema_ceiling": 1.0},
    ],
)
def test_ranges(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        nft.Settings(**options)
    with pytest.raises(ValueError, match="ceiling"):
        nft.OldPolicy(ceiling=1.0)


def test_the_reward_goes_up_and_the_policy_stays_near_the_reference():
    """Two classes, one Gaussian each, in the plane; the reward of each is another direction. Three seeds in one compilation."""
    settings = nft.Settings(kl_weight=0.5, method="euler", old_policy=nft.OldPolicy(slope=0.05, ceiling=0.5))
    means, optimizer, size = jnp.asarray([[-1.0, 0.0], [1.0, 0.0]]), optax.adam(0.02), 256
    directions = jnp.asarray([[0.0, 1.0], [1.0, 0.0]])

    def velocity(params, x, t, y):
        offset = means[y]
        exact = gaussian_velocity(0.0, 0.5)(x - t[:, None] * offset, t) + offset
        features = jnp.concatenate([jnp.ones_like(x[:, :1]), x, t[:, None]], axis=1)
        return exact + jnp.einsum("bf,bfd->bd", features, params[y])

    def iterate(state, key):
        noise_key, collect_key, loss_key = jax.random.split(key, 3)
        labels = jnp.arange(size) % 2
        noise = jax.random.normal(noise_key, (size, 2))
        buffer, _ = nft.collect(velocity, state.old, noise, labels, collect_key, settings)
        rewards = jnp.sum(directions[labels] * buffer.samples, axis=1)
        advantages, measured = group_advantages(rewards, labels, 2)
        function = lambda params, part: nft.loss(velocity, params, state.old, state.reference, part, loss_key, settings)  # noqa: E731
        gradient, metrics = accumulate(function, state.params, buffer._replace(advantages=advantages), 2)
        state = nft.update_old(nft.apply_gradients(state, gradient, optimizer, settings), settings)
        return state, metrics | measured

    def run(seed):
        start = nft.create(jnp.zeros((2, 4, 2)), optimizer)
        return jax.lax.scan(iterate, start, jax.random.split(jax.random.key(seed), 80))[1]

    history = jax.jit(lambda seeds: jax.lax.map(run, seeds))(jnp.arange(3))
    gain = history["reward_mean"][:, -10:].mean(axis=1) - history["reward_mean"][:, 0]
    assert (gain > 0.3).all() and (history["kl"][:, 0] == 0).all()
    level = history["kl"].reshape(3, 4, -1).mean(axis=2)  # of each quarter: it levels off where reward and KL balance
    assert (level[:, -1] > 0.05).all() and (level[:, -1] < 1.4 * level[:, -2]).all() and (level[:, -1] < 0.4).all()
