"""Exact velocities for Gaussian data and Gaussian mixtures on the linear path."""

import jax
import jax.numpy as jnp


def gaussian_velocity(mean, std):
    """E[x - e | x_t] for data N(mean, std^2 I): x_t ~ N(t mean, s_t^2) with s_t^2 = t^2 std^2 + (1 - t)^2."""

    def velocity(x, t):
        t = t.reshape(t.shape + (1,) * (x.ndim - 1))
        variance = t**2 * std**2 + (1 - t) ** 2
        return mean + (t * std**2 - (1 - t)) / variance * (x - t * mean)

    return velocity


def mixture_velocity(weights, means, stds):
    """The same for a mixture of isotropic Gaussians: component velocities, weighted by their posterior."""
    weights, means, stds = jnp.asarray(weights), jnp.asarray(means), jnp.asarray(stds)

    def velocity(x, t):
        t = t[:, None, None]
        variance = t**2 * stds[None, :, None] ** 2 + (1 - t) ** 2
        offset = x[:, None, :] - t * means[None]
        log = jnp.log(weights) - 0.5 * jnp.sum(offset**2 / variance + jnp.log(variance), axis=-1)
        posterior = jax.nn.softmax(log, axis=-1)[..., None]
        component = means[None] + (t * stds[None, :, None] ** 2 - (1 - t)) / variance * offset
        return jnp.sum(posterior * component, axis=1)

    return velocity
