"""DiT, REPA, JiT, DiT^DH and the spectral gate: sizes, options and conventions (parity is in tests/weights)."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxdrl import backbones
from jaxdrl.backbones import attention, dit, rotary, spectral, splash, stack
from jaxdrl.weights import from_torch, to_torch
from tests.drawing import drawn
from tests.golden import cases

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "official.npz")

LATENT = {"sample_shape": (8, 12, 3), "num_classes": 5, "patch_size": 2, "width": 32, "depth": 2, "num_heads": 4}
# Millions of parameters as the authors' own modules have them.
COUNTS = {
    "SiT-S/2": 32.96,
    "SiT-L/2": 458.10,
    "DiT-XL/2": 675.13,
    "REPA-SiT-XL/2": 683.24,
    "JiT-B/16": 131.3,
    "JiT-L/16": 459.1,
    "JiT-H/16": 952.8,
    "DiTDH-S": 196.5,
    "DiTDH-XL": 838.7,
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_parameter_counts(name):
    digits = len(str(COUNTS[name]).split(".")[1])
    assert round(backbones.create(name).num_params / 1e6, digits) == COUNTS[name]


def _gaussian_noise(spread):
    """The exact noise prediction of a diffusion of N(0, spread^2 I)."""
    betas = np.linspace(1e-4, 2e-2, 1000)
    alphas = jnp.asarray(np.cumprod(1 - betas))

    def predict(x, n):
        alpha = jnp.interp(n, jnp.arange(1000.0), alphas)[:, None, None, None]
        return x * jnp.sqrt(1 - alpha) / (alpha * spread**2 + 1 - alpha)

    return predict


def test_noise_prediction_becomes_the_exact_velocity():
    """For Gaussian data v(x, t) = E[x_1 - x_0 | x_t] = x (t s^2 - (1 - t)) / (t^2 s^2 + (1 - t)^2)."""
    spread, t = 0.6, jnp.array([0.05, 0.3, 0.5, 0.8, 0.95])
    x = jax.random.normal(jax.random.key(0), (5, 4, 4, 2))
    found = dit.velocity_from_noise(_gaussian_noise(spread), x, t)
    time = t[:, None, None, None]
    expected = x * (time * spread**2 - (1 - time)) / (time**2 * spread**2 + (1 - time) ** 2)
    np.testing.assert_allclose(found, expected, atol=4e-3)
    n, alpha = dit.diffusion_time(jnp.array([0.0, 1.0]))
    assert n.tolist() == [999.0, 0.0] and np.isfinite(np.asarray(alpha)).all()
    ends = dit.velocity_from_noise(_gaussian_noise(spread), x[:2], jnp.array([0.0, 1.0]))
    assert np.isfinite(np.asarray(ends)).all()


def test_dit_velocity_ignores_the_variance_channels():
    network = backbones.create("DiT", **LATENT)
    params = drawn(network.init)
    x, t, y = jax.random.normal(jax.random.key(1), (2, 8, 12, 3)), jnp.array([0.3, 0.7]), jnp.array([1, 5])
    assert network.predict(params, x, 1000 * t, y).shape == (2, 8, 12, 6)
    assert network.velocity(params, x, t, y).shape == (2, 8, 12, 3)
    kernel = params["final_linear"]["kernel"].reshape(32, 4, 6)
    params["final_linear"]["kernel"] = kernel.at[:, :, 3:].add(1.0).reshape(32, 24)
    before = network.velocity(drawn(network.init), x, t, y)
    np.testing.assert_array_equal(network.velocity(params, x, t, y), before)


@pytest.mark.parametrize(
    "name, options",
    [
        ("SiT", {}),
        ("DiT", {}),
        ("SiT", {"spectral": "timestep+label"}),
        ("JiT", {"context_start": 1, "context_length": 2}),
        ("DiTDH", {"head_width": 48, "head_depth": 1, "head_num_heads": 4}),
    ],
)
def test_weights_as_files_hold_them_can_be_bound_inside_jit(name, options):
    """NumPy's arrays take no traced index: labels are looked up in JAX's."""
    network = backbones.create(name, **LATENT | options)
    params = drawn(network.init)
    x, t, y = jax.random.normal(jax.random.key(1), (2, 8, 12, 3)), jnp.array([0.3, 0.7]), jnp.array([1, 5])
    bound = jax.tree.map(np.asarray, params)
    found = jax.jit(lambda x, t, y: network.velocity(bound, x, t, y))(x, t, y)
    np.testing.assert_allclose(found, network.velocity(params, x, t, y), rtol=2e-4, atol=2e-4)
    if network.gates:
        jax.jit(lambda t, y: network.gates(bound, t, y))(t, y)


def test_low_pass_is_scipys_binomial_filter():
    tokens = jax.random.normal(jax.random.key(0), (2, 30, 3))
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    found = spectral.low_pass(tokens, (5, 6)).reshape(2, 5, 6, 3)
    for image in range(2):
        for channel in range(3):
            grid = np.asarray(tokens).reshape(2, 5, 6, 3)[image, :, :, channel]
            expected = scipy.ndimage.correlate(grid, kernel, mode="nearest")
            np.testing.assert_allclose(found[image, :, :, channel], expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["timestep", "timestep+label", "static"])
def test_a_fresh_gate_changes_nothing_and_a_trained_one_does(mode):
    plain, gated = backbones.create("SiT", **LATENT), backbones.create("SiT", **LATENT, spectral=mode, gate_scale=0.5)
    params = jax.jit(gated.init)(jax.random.key(0))
    gates = {name: block["freq_gate"] for name, block in params.items() if name.startswith("blocks_")}
    other = drawn(gated.init)
    fresh = {name: part | {"freq_gate": gates[name]} if name in gates else part for name, part in other.items()}
    bare = {name: {k: v for k, v in part.items() if k != "freq_gate"} if name in gates else part for name, part in other.items()}
    x, t, y = jax.random.normal(jax.random.key(1), (2, 8, 12, 3)), jnp.array([0.3, 0.7]), jnp.array([1, 5])
    expected = plain.velocity(bare, x, t, y)
    np.testing.assert_allclose(gated.velocity(fresh, x, t, y), expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(gated.velocity(other, x, t, y), expected, atol=1e-3)


def test_gate_formula_and_what_conditions_it():
    gate = spectral.SpectralGate("timestep", (3, 4), scale=0.7)
    residual, time, both = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(2, 12, 8), (2, 8), (2, 8)]))
    params = drawn(gate.init, residual, time, both)["params"]
    found = gate.apply({"params": params}, residual, time, both)
    hidden = jax.nn.silu(time @ params["0"]["kernel"] + params["0"]["bias"])
    low, high = 0.7 * jnp.tanh(hidden @ params["2"]["kernel"] + params["2"]["bias"]).T[:, :, None, None]
    smooth = spectral.low_pass(residual, (3, 4))
    np.testing.assert_allclose(found, residual + low * smooth + high * (residual - smooth), atol=1e-5)
    np.testing.assert_array_equal(gate.apply({"params": params}, residual, time, both + 1), found)


@pytest.mark.parametrize(
    ("family", "mode"), [("SiT", "timestep"), ("DiT", "timestep+label"), ("REPA", "timestep"), ("SiT", "static")]
)
def test_gates_for_plots_are_those_that_the_network_applies(family, mode):
    network = backbones.create(family, **LATENT, spectral=mode, gate_scale=0.5)
    params, t, y = drawn(network.init), jnp.array([0.0, 0.3, 0.9]), jnp.array([1, 4, 5])
    applied = []

    def watch(call, arguments, options, context):
        found = call(*arguments, **options)
        if context.method_name == "gates":
            applied.append(found)
        return found

    with jax.disable_jit(), nn.intercept_methods(watch):
        network.velocity(params, jnp.zeros((3, 8, 12, 3)), t, y)
    found = network.gates(params, t, y)
    assert found.shape == (3, 2, 2) and len(applied) == 2
    np.testing.assert_allclose(found, jnp.stack(applied, axis=1), atol=1e-6)
    assert np.ptp(found, axis=1).max() > 1e-3
    scanned = backbones.create(family, **LATENT, spectral=mode, gate_scale=0.5, scan_layers=True)
    template = jax.eval_shape(scanned.init, jax.random.key(0))
    np.testing.assert_allclose(scanned.gates(stack.stacked(params, template), t, y), found, atol=1e-6)


def test_no_gates_without_a_spectral_gate():
    assert backbones.create("SiT", **LATENT).gates is None
    with pytest.raises(KeyError, match="blocks_2"):
        stack.block_params({"blocks_0_2": {}, "blocks_1": {}}, 2)


def test_the_gate_is_the_authors():
    """The residual before and after the gate of SpectralDiT's own block (kept in `tests/golden`)."""
    gate = spectral.SpectralGate("timestep+label", (4, 4), scale=0.2)
    draw = lambda key, *shape: jnp.asarray(10 * cases.draw(f"freq_gate.{key}", shape))  # noqa: E731
    params = {
        name: {"kernel": draw(f"{name}.weight", rows, 16 if name == "0" else 4).T, "bias": draw(f"{name}.bias", rows)}
        for name, rows in (("0", 4), ("2", 2))
    }
    condition = jnp.asarray(cases.cotangent((2, 16)))
    found = gate.apply({"params": params}, jnp.asarray(GOLDEN["spectral/before"]), jnp.zeros((2, 16)), condition)
    expected = GOLDEN["spectral/after"]
    assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-6
    assert np.abs(expected - GOLDEN["spectral/before"]).max() / np.abs(expected).max() > 1e-2


def test_rotary_attention_sees_relative_places_only():
    """q . k depends on the difference of places, row and column apart; prefix tokens are not turned."""
    cos, sin = rotary.rotary_2d((4, 5), 16, prefix=2)
    q, k = jax.random.normal(jax.random.key(0), (2, 16))
    turn = lambda v, place: rotary.rotate(v[None], cos[place : place + 1], sin[place : place + 1])[0]  # noqa: E731
    place = lambda row, column: 2 + row * 5 + column  # noqa: E731
    one = turn(q, place(0, 1)) @ turn(k, place(2, 4))
    two = turn(q, place(1, 0)) @ turn(k, place(3, 3))
    three = turn(q, place(1, 0)) @ turn(k, place(3, 2))
    np.testing.assert_allclose(one, two, rtol=1e-4)
    assert abs(float(one - three)) > 1e-3
    np.testing.assert_array_equal(turn(q, 1), q)


EXTRA = {
    "SiT": {},
    "DiT": {},
    "REPA": {"projector_dims": (6,), "projector_depth": 1},
    "JiT": {"context_length": 3, "context_start": 1},
    "DiTDH": {"head_width": 48, "head_num_heads": 4},
}


def _make(family, **options):
    return backbones.create(family, **LATENT, **EXTRA[family], **options)


def _gradient(network, params, *, of_params=False):
    x, t, y = jax.random.normal(jax.random.key(1), (2, 8, 12, 3)), jnp.array([0.3, 0.7]), jnp.array([1, 5])
    loss = lambda params, x: (network.velocity(params, x, t, y) ** 2).sum()  # noqa: E731
    return jax.jit(jax.grad(loss, argnums=0 if of_params else 1))(params, x)


@pytest.mark.parametrize("family", ["JiT", "DiTDH"])
def test_bfloat16_of_the_rotary_families(family):
    params = drawn(_make(family).init, scale=0.1)
    x, t, y = jax.random.normal(jax.random.key(1), (2, 8, 12, 3)), jnp.array([0.3, 0.7]), jnp.array([1, 5])
    exact, half = _make(family).velocity(params, x, t, y), _make(family, dtype="bfloat16").velocity(params, x, t, y)
    assert half.dtype == jnp.float32 and 0 < float(jnp.abs(half - exact).max()) < 0.1 * float(jnp.abs(exact).max())


@pytest.mark.parametrize("family", ["SiT", "REPA", "JiT", "DiTDH"])  # DiT's network is SiT's
def test_scan_remat_and_attention_change_no_number(family):
    """Scanned blocks hold the same weights stacked; policies and implementations give the same gradients."""
    plain = _make(family)
    params = drawn(plain.init, scale=0.1)
    expected = _gradient(plain, params, of_params=True)
    variants = [{"scan_layers": True, "remat": "full"}, {"attention": "xla"}]
    if family == "SiT":
        variants += [{"remat": "full"}, {"remat": "dots"}, {"remat": "dots_no_batch"}, {"remat": "offload"}]
    for options in variants:
        network = _make(family, **options)
        given = from_torch(network, to_torch(plain, params))
        assert jax.tree.structure(given) == jax.tree.structure(jax.eval_shape(network.init, jax.random.key(0)))
        found = _gradient(network, jax.tree.map(jnp.asarray, given), of_params=True)
        one, two = to_torch(plain, expected), to_torch(network, found)
        for key, value in one.items():
            np.testing.assert_allclose(
                two[key], value, rtol=1e-3, atol=1e-4 * np.abs(value).max() + 1e-7, err_msg=f"{key} {options}"
            )


def test_policies_recompute_what_they_say():
    """All products are kept under "dots", those with weights under "dots_no_batch" and "offload" (there in the host's memory)."""
    params = jax.eval_shape(_make("SiT").init, jax.random.key(0))
    counts, written = {}, {}
    for policy in stack.REMAT:
        network = _make("SiT", remat=policy)
        loss = lambda params, network=network: (  # noqa: E731
            network.velocity(params, jnp.ones((1, 8, 12, 3)), jnp.ones(1), jnp.ones(1, jnp.int32)) ** 2
        ).sum()
        written[policy] = str(jax.make_jaxpr(jax.grad(loss))(params))
        counts[policy] = written[policy].count("dot_general")
    assert counts["none"] == counts["dots"] < counts["dots_no_batch"] == counts["offload"] < counts["full"]
    assert {policy for policy, text in written.items() if "pinned_host" in text or "<host>" in text} == {"offload"}


def test_attention_by_name():
    assert attention.choose("auto", jnp.bfloat16, "gpu") == "cudnn"
    assert attention.choose("auto", jnp.float32, "gpu") == attention.choose("auto", jnp.bfloat16, "tpu") == "einsum"
    with pytest.raises(ValueError, match="needs an NVIDIA GPU and dtype='bfloat16', here are cpu and float32"):
        _gradient(_make("SiT", attention="cudnn"), drawn(_make("SiT").init))

    assert attention.choose("splash", jnp.bfloat16, "tpu") == "splash"
    with pytest.raises(ValueError, match="attention='splash' needs a TPU, here is cpu; use auto"):
        _gradient(_make("SiT", attention="splash"), _make("SiT").init(jax.random.key(0)))


# 20 keys fill no tile of 128, 12 channels no lane.
@pytest.mark.parametrize("how", ["plain", "causal", "masked"])
def test_splash_attention_is_attention(how):
    """The kernel's text, interpreted: values and gradients."""
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 2, 20, 12)) for i in range(3))
    options = {"causal": how == "causal", "mask": jnp.arange(20) < jnp.array([[20], [13]]) if how == "masked" else None}
    weights = jax.random.normal(jax.random.key(3), (2, 20, 24))

    def kernel(q, k, v):
        out = splash.attention(q, k, v, **options, interpret=True)
        return (out.transpose(0, 2, 1, 3).reshape(2, 20, 24) * weights).sum()

    plain = lambda q, k, v: (attention.attend(q, k, v, jnp.float32, "einsum", **options) * weights).sum()  # noqa: E731
    found, expected = (jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(q, k, v) for f in (kernel, plain))
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-4)
    for one, two in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(one, two, atol=2e-4)


def test_qk_norm_is_a_layer_norm_of_each_head():
    """With q and k of one head normalised, their scale no longer matters."""
    network = _make("REPA", qk_norm=True)
    params = drawn(network.init)
    assert params["blocks_0"]["attn"]["q_norm"]["scale"].shape == (8,)
    louder = jax.tree.map(lambda leaf: leaf, params)
    kernel, bias = louder["blocks_0"]["attn"]["qkv"]["kernel"], louder["blocks_0"]["attn"]["qkv"]["bias"]
    louder["blocks_0"]["attn"]["qkv"] = {"kernel": kernel.at[:, :64].multiply(100.0), "bias": bias.at[:64].multiply(100.0)}
    params["blocks_0"]["attn"]["qkv"] = {"kernel": kernel.at[:, :64].multiply(50.0), "bias": bias.at[:64].multiply(50.0)}
    x, t, y = jax.random.normal(jax.random.key(1), (2, 8, 12, 3)), jnp.array([0.3, 0.7]), jnp.array([1, 5])
    np.testing.assert_allclose(network.velocity(params, x, t, y), network.velocity(louder, x, t, y), atol=1e-3)
    assert {"blocks.0.attn.q_norm.weight", "blocks.1.attn.k_norm.bias"} < to_torch(network, params).keys()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"spectral": "fourier"}, "spectral must be"),
        ({"remat": "half"}, "remat must be one of none, full, dots, dots_no_batch, offload"),
        ({"attention": "flash"}, "attention must be one of auto, einsum, xla, cudnn, splash"),
        ({"numerics": "timm"}, "numerics must be"),
        ({"projector_dims": (4,), "projector_depth": 3}, "more than the depth"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        backbones.create("SiT", **(LATENT | options))


def test_a_third_of_the_way_up():
    for name in backbones.PUBLISHED:
        family, fields = backbones.PUBLISHED[name]
        if family not in ("REPA", "JiT") or name.startswith("JiT-G"):  # G starts its context at 10 of 40
            continue
        key = "projector_depth" if family == "REPA" else "context_start"
        alone = backbones.create(family, **{k: v for k, v in fields.items() if k != key})
        assert dict(alone.fields)[key] == fields[key], name
    with pytest.raises(ValueError, match="context_start 2"):
        backbones.create("JiT", **LATENT, context_start=2)


def test_the_same_name_and_fields_give_the_same_object():
    assert backbones.create("DiTDH-S") is backbones.create("DiTDH-S")
    assert set(backbones.PUBLISHED) < set(backbones.names())
