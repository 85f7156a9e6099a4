"""Compile time counts too: the gradient of SiT-XL/2 with scanned layers, on CPU (1.7 s on two cores; unrolled 11 s)."""

import time

import jax
import jax.numpy as jnp

from jaxdrl import backbones


def test_the_gradient_of_an_xl_model_compiles_in_under_a_minute():
    network = backbones.create("SiT-XL/2", scan_layers=True)
    params = jax.eval_shape(network.init, jax.random.key(0))
    x, t = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 32, 32, 4), (2,)))
    y = jax.ShapeDtypeStruct((2,), jnp.int32)
    gradient = jax.jit(jax.grad(lambda params, x, t, y: (network.velocity(params, x, t, y) ** 2).mean()))
    began = time.monotonic()
    compiled = gradient.lower(params, x, t, y).compile()
    assert time.monotonic() - began < 60
    assert compiled.memory_analysis() is not None
