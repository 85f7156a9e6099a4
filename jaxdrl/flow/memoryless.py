r"""The memoryless SDE of a flow-matching model, its two integrators and their lean adjoints.

Sources: Domingo-Enrich et al., "Adjoint Matching", arXiv 2409.08861 (the SDE, Euler-Maruyama, the lean adjoint);
"Discriminator-Guided RL", arXiv 2606.19162, App. F-H (the local linear integrator).

With t = 0 noise and t = 1 data, the SDE that has the marginals of the flow *and* whose end is independent of its start is

    dX = (2 v(X, t) - X / t) dt + sigma(t) dW,          sigma(t)^2 = 2 (1 - t) / t.                     (1)

Grid t_k = k / K, step D = 1 / K. Two offsets keep (1) finite at its ends: X / t becomes X / u with u = t + delta, and sigma^2
becomes 2 (1 - t + epsilon) / u. The papers take delta = epsilon = D. Both integrators have the form

    X_{k+1} = a_k X_k + b_k v(X_k, t_k) + c_k xi_k,     xi_k ~ N(0, I).                                 (2)

Local linear (the linear part of the drift is solved exactly within a step):

    a_k = Phi_k = u_k / u_{k+1}                                                                         (3)
    b_k = Omega_k = u_{k+1} (1 - Phi_k^2)                                                               (4)
    c_k = sqrt(V_k),  V_k = (1 + delta + epsilon)(1 - Phi_k^2) - (2/3)(u_{k+1} - Phi_k^2 u_k)           (5)
    and the last step is one deterministic denoising call: a = 1, b = D, c = 0.                         (6)

Euler-Maruyama:

    a_k = 1 - D / u_k,   b_k = 2 D,   c_k = sqrt(2 (1 - t_k + epsilon) D / u_k).                        (7)

The lean adjoint runs backwards from the terminal value with J_k = d v_base / d x at (X_k, t_k):

    local linear:     A_k = Phi_k (A_{k+1} + 2 D J_{k+1}^T A_{k+1})                                     (8)
    Euler-Maruyama:   A_k = A_{k+1} + D (2 J_{k+1}^T A_{k+1} - A_{k+1} / u_{k+1})                       (9)

Each vector-Jacobian product evaluates v_base(X_{k+1}, t_{k+1}) on its way; that value is returned, so that nobody has to
compute it again.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

Velocity = Callable[[Float[Array, "batch ..."], Float[Array, " batch"]], Float[Array, "batch ..."]]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The time grid of the memoryless SDE and the coefficients (3) to (9) on it.

    Attributes:
        num_steps: K, at least 2.
        integrator: "local_linear" (default, the DRL paper's) or "euler_maruyama" (Adjoint Matching's).
        time_offset: delta. None keeps the paper's 1 / K. Offsets of that size widen the law, holding v over a step narrows it: on
            a Gaussian the two nearly cancel, on images at small K they do not. 8 x 8 patches, Frechet distance in the judge space
            (ODE: .47): K = 20 gives 3.0 with delta = epsilon = 1 / K and .79 with (.01, 0); K = 40 gives 1.14 and .56; K = 100
            with the paper's offsets .60. The reward then corrects what is the SDE's error, not the model's. Euler-Maruyama is
            unstable below 1 / K.
        noise_offset: epsilon of the SDE. None: the paper's 1 / K.
        gain_eps: epsilon inside the gain sigma_k of the regression target alone. None: as `noise_offset`. At the paper's 1 / K it
            over-tilts the tuned law by 2.5 % at K = 100 and 10 % at K = 25 (linear reward, Gaussian data); 0 removes that bias.

    Raises:
        ValueError: If num_steps < 2, the integrator is unknown or an offset is out of range.
    """

    num_steps: int
    integrator: str = "local_linear"
    time_offset: float | None = None
    noise_offset: float | None = None
    gain_eps: float | None = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.num_steps < 2:
            raise ValueError(f"num_steps must be at least 2, got {self.num_steps}")
        if self.integrator not in ("local_linear", "euler_maruyama"):
            raise ValueError(f"integrator must be local_linear or euler_maruyama, got {self.integrator!r}")
        for name in ("noise_offset", "gain_eps"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must be None or at least 0, got {value}")
        least = self.step_size if self.integrator == "euler_maruyama" else 0.0
        if self.time_offset is not None and (self.time_offset <= 0 or self.time_offset < least):
            bound = f"at least 1 / K = {least:g} with euler_maruyama" if least else "positive"
            raise ValueError(f"time_offset must be None or {bound}, got {self.time_offset}")

    @property
    def step_size(self) -> float:
        """D = 1 / K."""
        return 1.0 / self.num_steps

    @property
    def times(self) -> np.ndarray:
        """t_0 .. t_K, float64 [K + 1]."""
        return np.arange(self.num_steps + 1) / self.num_steps

    @property
    def offset_times(self) -> np.ndarray:
        """u_0 .. u_K, float64 [K + 1]."""
        return self.times + (self.step_size if self.time_offset is None else self.time_offset)

    @property
    def epsilon(self) -> float:
        """The offset of the SDE's noise."""
        return self.step_size if self.noise_offset is None else self.noise_offset

    @property
    def gain(self) -> np.ndarray:
        """sigma_0 .. sigma_{K-1} as the loss and its target see it, float64 [K]."""
        eps = self.epsilon if self.gain_eps is None else self.gain_eps
        return np.sqrt(2 * (1 - self.times[:-1] + eps) / self.offset_times[:-1])

    def forward_coefficients(self) -> np.ndarray:
        """Returns (a_k, b_k, c_k) of (2), float64 [K, 3]."""
        t, u, step, eps = self.times, self.offset_times, self.step_size, self.epsilon
        if self.integrator == "euler_maruyama":
            a = 1 - step / u[:-1]  # (7)
            b = np.full_like(a, 2 * step)
            c = np.sqrt(2 * (1 - t[:-1] + eps) * step / u[:-1])
            return np.stack([a, b, c], axis=1)
        phi = u[:-1] / u[1:]  # (3)
        omega = u[1:] * (1 - phi**2)  # (4)
        variance = (1 + u[0] + eps) * (1 - phi**2) - (2 / 3) * (u[1:] - phi**2 * u[:-1])  # (5)
        coefficients = np.stack([phi, omega, np.sqrt(variance)], axis=1)
        coefficients[-1] = (1.0, step, 0.0)  # (6)
        return coefficients

    def adjoint_coefficients(self) -> np.ndarray:
        """Returns (p_k, q_k) of A_k = p_k A_{k+1} + q_k J_{k+1}^T A_{k+1}, float64 [K, 2]."""
        u, step = self.offset_times, self.step_size
        if self.integrator == "euler_maruyama":
            p = 1 - step / u[1:]  # (9)
            return np.stack([p, np.full_like(p, 2 * step)], axis=1)
        phi = u[:-1] / u[1:]
        return np.stack([phi, 2 * step * phi], axis=1)  # (8)


@jax.named_scope("rollout")
def rollout(
    velocity: Velocity, noise: Float[Array, "batch ..."], key: Key[Array, ""], schedule: Schedule
) -> tuple[Float[Array, "states batch ..."], Float[Array, "steps batch ..."]]:
    """Integrates the memoryless SDE (1) from noise to data with (2).

    Args:
        velocity: v(x, t) of the current model.
        noise: X_0, standard normal, float32.
        key: Drives xi_k; step k uses `fold_in(key, k)`.
        schedule: Grid and integrator.

    Returns:
        X_0 .. X_K, float32 [K + 1, batch, ...], and v(X_0, t_0) .. v(X_{K-1}, t_{K-1}), [K, batch, ...].
    """
    x = noise.astype(jnp.float32)

    def step(x, inputs):
        index, t, (a, b, c) = inputs
        xi = jax.random.normal(jax.random.fold_in(key, index), x.shape, jnp.float32)
        value = velocity(x, jnp.full(x.shape[0], t))
        new = a * x + b * value + c * xi  # (2)
        return new, (new, value)

    coefficients = jnp.asarray(schedule.forward_coefficients(), jnp.float32)
    times = jnp.asarray(schedule.times[:-1], jnp.float32)
    steps = jnp.arange(schedule.num_steps)
    _, (states, values) = jax.lax.scan(step, x, (steps, times, tuple(coefficients.T)))
    return jnp.concatenate([x[None], states]), values


@jax.named_scope("adjoint")
def lean_adjoint(
    velocity: Velocity,
    states: Float[Array, "states batch ..."],
    terminal: Float[Array, "batch ..."],
    schedule: Schedule,
) -> tuple[Float[Array, "steps batch ..."], Float[Array, "steps batch ..."]]:
    """Solves the lean adjoint (8) or (9) backwards along a trajectory.

    Args:
        velocity: v(x, t) of the *base* model.
        states: X_0 .. X_K from `rollout`.
        terminal: A_K, minus the gradient of the scaled reward with respect to X_K.
        schedule: The schedule that made the states.

    Returns:
        A_0 .. A_{K-1} and v_base(X_0, t_0) .. v_base(X_{K-1}, t_{K-1}), both float32 [K, batch, ...]. All but the first of the
        velocities are the primal values of the vector-Jacobian products; the first takes one call of its own.
    """
    return _backwards(velocity, states, terminal, schedule, lambda pullback: lambda adjoint: pullback(adjoint)[0])


def lean_adjoints(
    velocity: Velocity,
    states: Float[Array, "states batch ..."],
    terminals: Float[Array, "m batch ..."],
    schedule: Schedule,
) -> tuple[Float[Array, "steps m batch ..."], Float[Array, "steps batch ..."]]:
    """Solves m lean adjoints along the same trajectory: they differ in their terminal values alone and share every linearisation.

    The base is evaluated and linearised once a step, whatever m is; each adjoint costs one pass of the transposed Jacobian.

    Args:
        velocity: v(x, t) of the *base* model.
        states: X_0 .. X_K from `rollout`.
        terminals: m values of A_K.
        schedule: The schedule that made the states.

    Returns:
        The adjoints, float32 [K, m, batch, ...], and the velocities as in `lean_adjoint`.
    """
    return _backwards(velocity, states, terminals, schedule, lambda pullback: jax.vmap(lambda adjoint: pullback(adjoint)[0]))


def _backwards(velocity: Velocity, states, terminal, schedule: Schedule, transposed):
    """(8) or (9), with J^T made of the pullback by `transposed`."""

    def step(adjoint, inputs):
        x, t, (p, q) = inputs
        value, pullback = jax.vjp(lambda x: velocity(x, jnp.full(x.shape[0], t)), x)
        new = p * adjoint + q * transposed(pullback)(adjoint)  # (8), (9)
        return new, (new, value)

    coefficients = jnp.asarray(schedule.adjoint_coefficients(), jnp.float32)
    times = jnp.asarray(schedule.times, jnp.float32)
    inputs = (states[1:], times[1:], tuple(coefficients.T))
    _, (adjoints, values) = jax.lax.scan(step, terminal.astype(jnp.float32), inputs, reverse=True)
    first = velocity(states[0], jnp.full(states.shape[1], times[0]))
    return adjoints, jnp.concatenate([first[None], values[:-1]])
