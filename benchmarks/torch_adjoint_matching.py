r"""The whole DRL step beside a straightforward PyTorch Adjoint Matching: same SiT, same reward, same draws, same cores.

    python benchmarks/torch_adjoint_matching.py [--rounds=5] [--threads=2] [--compiled]

The PyTorch side is written as the paper's equations stand (`algorithms/adjoint_matching.py` has them): a loop for the rollout, a loop of
`autograd.grad` for the lean adjoint, v_base evaluated again in the loss (3), `torch.optim.Adam`. Its network is the authors' SiT, by the names
of their file. "cached" is the same with v_base kept from the adjoint, as ours does it. Both sides are compared first, all draws being equal:
trajectories, adjoints, losses and weights; then they take turns. Ratios are those of each round.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.drl_step import frozen_networks, fused_step, in_turn
from jaxdrl import config as jaxdrl_config
from jaxdrl.algorithms import adjoint_matching
from jaxdrl.config import Config
from jaxdrl.training import mesh, models
from jaxdrl.training.methods import adjoint, buffers, common
from jaxdrl.weights import to_torch


class Attention(nn.Module):
    """timm's: fused qkv, PyTorch's fused attention, a projection."""

    def __init__(self, width: int, heads: int) -> None:
        """Builds the layers.

        Args:
            width: Channels.
            heads: Divides the width.
        """
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attends, [batch, tokens, width]."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """fc1, GELU's tanh form, fc2."""

    def __init__(self, width: int, hidden: int) -> None:
        """Builds the layers.

        Args:
            width: Channels.
            hidden: Channels between.
        """
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the layers."""
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))


def modulated(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """LayerNorm without weights, then adaLN's shift and scale.

    Args:
        x: [batch, tokens, width].
        shift: [batch, width].
        scale: [batch, width].

    Returns:
        Tokens.
    """
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """adaLN-Zero."""

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        """Builds the layers.

        Args:
            width: Channels.
            heads: Of the attention.
            ratio: Hidden width over width.
        """
        super().__init__()
        self.attn, self.mlp = Attention(width, heads), Mlp(width, int(width * ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Applies the block."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_a[:, None] * self.attn(modulated(x, shift_a, scale_a))
        return x + gate_m[:, None] * self.mlp(modulated(x, shift_m, scale_m))


class SiT(nn.Module):
    """The authors' network, by the names of their file; velocity of samples [batch, channels, h, w] at t in [0, 1]."""

    def __init__(self, fields: dict[str, Any]) -> None:
        """Builds the layers.

        Args:
            fields: Of our backbone, of the family SiT.
        """
        super().__init__()
        width, patch, (height, _, channels) = fields["width"], fields["patch_size"], fields["sample_shape"]
        self.patch, self.grid, self.frequencies = patch, height // patch, fields.get("frequency_dim", 256)
        self.halves = 2 if fields.get("learn_sigma", True) else 1
        self.x_embedder: Any = nn.Module()
        self.t_embedder: Any = nn.Module()
        self.y_embedder: Any = nn.Module()
        self.x_embedder.proj = nn.Conv2d(channels, width, patch, patch)
        self.t_embedder.mlp = nn.Sequential(nn.Linear(self.frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.y_embedder.embedding_table = nn.Embedding(fields["num_classes"] + 1, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid**2, width), requires_grad=False)
        ratio = fields.get("mlp_ratio", 4.0)
        self.blocks = nn.ModuleList(Block(width, fields["num_heads"], ratio) for _ in range(fields["depth"]))
        self.final_layer: Any = nn.Module()
        self.final_layer.linear = nn.Linear(width, patch**2 * channels * self.halves)
        self.final_layer.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Evaluates the velocity."""
        half = self.frequencies // 2
        angle = t[:, None] * torch.exp(-np.log(10000.0) * torch.arange(half, dtype=torch.float32) / half)
        c = self.t_embedder.mlp(torch.cat([angle.cos(), angle.sin()], dim=1)) + self.y_embedder.embedding_table(y)
        tokens = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, c)
        tokens = self.final_layer.linear(modulated(tokens, *self.final_layer.adaLN_modulation(c).chunk(2, dim=1)))
        n, g, p = len(x), self.grid, self.patch
        out = tokens.reshape(n, g, g, p, p, -1).permute(0, 5, 1, 3, 2, 4).reshape(n, -1, g * p, g * p)
        return out.chunk(self.halves, dim=1)[0]


def as_torch(tree: Any) -> Any:
    """A tree of arrays as tensors.

    Args:
        tree: Nested dicts.

    Returns:
        The same with tensors.
    """
    return {key: as_torch(value) for key, value in tree.items()} if isinstance(tree, dict) else torch.tensor(np.asarray(tree))


def discriminator(encoder: dict[str, Any], head: dict[str, Any], fields: dict[str, Any]) -> Callable[..., torch.Tensor]:
    """The logit on `small-vit`'s class token, from our weights as they are.

    Args:
        encoder: From `as_torch`.
        head: From `as_torch`.
        fields: Of the encoder.

    Returns:
        (images [batch, channels, h, w], labels) -> [batch].
    """
    patch, heads = fields["patch_size"], fields.get("num_heads", 2)
    linear = lambda x, layer: x @ layer["kernel"] + layer["bias"]  # noqa: E731
    norm = lambda x, layer: functional.layer_norm(x, x.shape[-1:], layer["scale"], layer["bias"], 1e-6)  # noqa: E731

    def attend(x, layer):
        q, k, v = linear(x, layer["qkv"]).reshape(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        return linear(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape), layer["proj"])

    def logit(images, labels):
        n, channels, side, _ = images.shape
        g = side // patch
        tokens = images.reshape(n, channels, g, patch, g, patch).permute(0, 2, 4, 3, 5, 1).reshape(n, g * g, -1)
        tokens = linear(tokens, encoder["patch_embedding"])
        tokens = torch.cat([encoder["class_token"].expand(n, -1, -1), tokens], dim=1) + encoder["positions"]
        for i in range(fields["depth"]):
            tokens = tokens + attend(norm(tokens, encoder[f"norm1_{i}"]), encoder[f"attention_{i}"])
            mlp, h = encoder[f"mlp_{i}"], norm(tokens, encoder[f"norm2_{i}"])
            tokens = tokens + linear(functional.gelu(linear(h, mlp["fc1"])), mlp["fc2"])
        h = norm(tokens, encoder["norm"])[:, 0] @ head["projection"]
        return (h * (head["weight"] + head["embedding"][labels])).sum(dim=1) + head["bias"][labels]

    return logit


@dataclass(frozen=True, kw_only=True)
class Draws:
    """All that is random in a refresh, as `training/methods/adjoint.py` draws it; channels first.

    Attributes:
        noise: X_0, [buffer, c, h, w].
        xi: Of the SDE, [K, buffer, c, h, w].
        labels: [buffer].
        batches: For each update, the trajectories and the steps S.
    """

    noise: torch.Tensor
    xi: torch.Tensor
    labels: torch.Tensor
    batches: tuple[tuple[torch.Tensor, torch.Tensor], ...]


def draws(config: Config, settings: adjoint.Settings, key: jax.Array, refresh: int = 0) -> Draws:
    """Repeats the draws of a refresh.

    Args:
        config: A run's config, with `rollout_batch` 0.
        settings: From `adjoint.settings_from`.
        key: Of the stage.
        refresh: Its number.

    Returns:
        See `Draws`.
    """
    noise_key, sde_key, update_key = jax.random.split(jax.random.fold_in(key, refresh), 3)
    shape = (config.posttrain.buffer_size, *models.backbone(config).sample_shape)
    batches = []
    for epoch in jax.random.split(update_key, config.posttrain.epochs):
        order_key, step_key = jax.random.split(epoch)
        orders = buffers.orders(config, order_key)
        for order, step in zip(orders, jax.random.split(step_key, len(orders)), strict=True):
            subset = adjoint_matching.draw_subset(step, settings)
            batches.append((torch.tensor(np.asarray(order)).long(), torch.tensor(np.asarray(subset)).long()))
    xi = [jax.random.normal(jax.random.fold_in(sde_key, k), shape) for k in range(settings.schedule.num_steps)]
    return Draws(
        noise=channels_first(jax.random.normal(noise_key, shape)),
        xi=channels_first(jnp.stack(xi)),
        labels=torch.arange(shape[0]) % config.data.num_classes,
        batches=tuple(batches),
    )


def channels_first(values: jax.Array) -> torch.Tensor:
    """Ours to PyTorch's order.

    Args:
        values: [..., h, w, c].

    Returns:
        [..., c, h, w].
    """
    return torch.tensor(np.moveaxis(np.asarray(values), -1, -3).copy())


class Buffer(NamedTuple):
    """Trajectories: X_0 .. X_K, A_0 .. A_{K-1} and v_base(X_0) .. v_base(X_{K-1}), [steps, buffer, c, h, w]."""

    states: torch.Tensor
    adjoints: torch.Tensor
    base: torch.Tensor


class AdjointMatching:
    """Stage 2 of DRL in PyTorch, equation by equation."""

    def __init__(self, model: Any, base: Any, reward: Callable[..., torch.Tensor], config: Config, cached: bool) -> None:
        """Prepares the optimizer.

        Args:
            model: What is trained.
            base: The KL reference.
            reward: (samples, labels) -> [batch].
            config: A run's config, with a constant learning rate.
            cached: Whether the loss takes v_base from the adjoint, or evaluates it as (3) stands.
        """
        self.model, self.base, self.reward, self.cached = model, base, reward, cached
        self.settings: adjoint_matching.Settings = adjoint.settings_from(config)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=config.posttrain.learning_rate)
        self.threshold = 0.0

    def refresh(self, drawn: Draws) -> list[float]:
        """One refresh of the buffer and all updates on it.

        Args:
            drawn: What is random.

        Returns:
            The loss of each update.
        """
        buffer = self.collect(drawn)
        return [self.update(buffer, drawn.labels, *batch) for batch in drawn.batches]

    def collect(self, drawn: Draws) -> Buffer:
        """Rollout, reward gradient, lean adjoint.

        Args:
            drawn: What is random.

        Returns:
            The buffer.
        """
        schedule, x, labels = self.settings.schedule, drawn.noise, drawn.labels
        states = [x]
        with torch.no_grad():
            for (a, b, c), t, xi in zip(
                _floats(schedule.forward_coefficients()), schedule.times.tolist(), drawn.xi, strict=False
            ):
                x = a * x + b * self.model(x, torch.full((len(x),), t), labels) + c * xi
                states.append(x)
        last = x.requires_grad_(True)
        adjoint = -self.settings.reward_scale * torch.autograd.grad(self.reward(last, labels).sum(), last)[0]
        adjoints, base = [], []
        for k in reversed(range(schedule.num_steps)):
            p, q = _floats(schedule.adjoint_coefficients())[k]
            at = states[k + 1].detach().requires_grad_(True)
            value = self.base(at, torch.full((len(at),), float(schedule.times[k + 1])), labels)
            adjoint = p * adjoint + q * torch.autograd.grad(value, at, adjoint)[0]
            adjoints.append(adjoint)
            base.append(value.detach())
        with torch.no_grad():
            first = self.base(states[0], torch.zeros(len(x)), labels)
        states = [state.detach() for state in states]
        return Buffer(torch.stack(states), torch.stack(adjoints[::-1]), torch.stack([first, *base[:0:-1]]))

    def update(self, buffer: Buffer, labels: torch.Tensor, rows: torch.Tensor, subset: torch.Tensor) -> float:
        """One gradient step, (3) to (6).

        Args:
            buffer: From `collect`.
            labels: Of the buffer.
            rows: Trajectories of the minibatch.
            subset: S.

        Returns:
            The loss.
        """
        states, adjoints, base = (values[subset][:, rows] for values in buffer)
        gain = torch.tensor(self.settings.schedule.gain, dtype=torch.float32)[subset].reshape(-1, 1, 1, 1, 1)
        times = torch.tensor(self.settings.schedule.times, dtype=torch.float32)[subset].repeat_interleave(len(rows))
        at = (states.flatten(0, 1), times, labels[rows].repeat(len(subset)))
        if not self.cached:
            with torch.no_grad():
                base = self.base(*at).reshape(states.shape)
        velocity = self.model(*at).reshape(states.shape)
        losses = (2 / gain * (velocity - base) + gain * adjoints).square().sum(dim=(0, 2, 3, 4))  # (3)
        keep = self._keep(losses.detach().sqrt())
        loss = 0.5 * (losses * keep).sum() / keep.sum().clamp(min=1)  # (4)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def _keep(self, norms: torch.Tensor) -> torch.Tensor:
        """(6)."""
        quantile, rho = float(norms.quantile(self.settings.outlier_quantile)), self.settings.outlier_decay
        moved = rho * self.threshold + (1 - rho) * min(quantile, self.settings.outlier_cap * self.threshold)
        self.threshold = moved if self.threshold > 0 else quantile
        return norms < self.threshold


def _floats(values: np.ndarray) -> list[list[float]]:
    return values.astype(np.float32).tolist()


def small() -> Config:
    """What is compared: a SiT on 16 x 16 pixels, small-vit's discriminator, the paper's shares of steps and epochs.

    Returns:
        The config.
    """
    config = jaxdrl_config.default()
    config.data.update(name="synthetic", image_shape=(16, 16, 3), num_classes=10)
    config.backbone.update(weights=models.RANDOM, width=128, depth=4, num_heads=4, frequency_dim=256)
    config.encoders.reward.update(width=64, depth=2, feature_dim=64)
    config.discriminator.width = 64
    config.posttrain.update(num_timesteps=10, buffer_size=16, batch_size=8, epochs=5, warmup_steps=0)
    return config


def rival(
    config: Config, frozen: common.Frozen, cached: bool = False, wrap: Callable[[Any], Any] = lambda model: model
) -> AdjointMatching:
    """The PyTorch side with our weights.

    Args:
        config: With a SiT on pixels, and small-vit.
        frozen: From `drl_step.frozen_networks`.
        cached: See `AdjointMatching`.
        wrap: Of both networks, such as `torch.compile`.

    Returns:
        Stage 2 before its first refresh.
    """
    network, encoder = models.backbone(config), models.encoder(config, "reward")
    weights = {key: torch.tensor(value) for key, value in to_torch(network, frozen.base).items()}
    tuned, base = SiT(dict(network.fields)), SiT(dict(network.fields)).requires_grad_(False)
    for module in (tuned, base):
        module.load_state_dict(weights, strict=True)
    reward = discriminator(as_torch(frozen.encoder), as_torch(frozen.head), dict(encoder.fields))
    return AdjointMatching(wrap(tuned), wrap(base), reward, config, cached)


def compare(config: Config, frozen: common.Frozen) -> dict[str, float]:
    """Runs a refresh on both sides with the same draws.

    Args:
        config: With a SiT on pixels, and small-vit.
        frozen: From `drl_step.frozen_networks`.

    Returns:
        Relative differences: of trajectories, adjoints, v_base, the mean loss and the change of the weights.
    """
    settings, key, network = adjoint.settings_from(config), jax.random.key(0), models.backbone(config)
    drawn, theirs = draws(config, settings, key), rival(config, frozen)
    buffer = theirs.collect(drawn)
    losses = [theirs.update(buffer, drawn.labels, *batch) for batch in drawn.batches]
    devices = mesh.create_mesh()
    with jax.set_mesh(devices):
        after, metrics = adjoint.compile_step(config, settings, devices)(adjoint.initial_state(config, frozen.base), frozen, key)
    keys = jax.random.split(jax.random.fold_in(key, 0), 3)
    reward = lambda x, y: common.rewards(config, frozen)[0](x, y)  # noqa: E731
    noise, labels = (jnp.asarray(value.numpy()) for value in (drawn.noise.permute(0, 2, 3, 1), drawn.labels))
    collect = jax.jit(
        lambda params, x, y, key: adjoint_matching.collect(network.velocity, params, frozen.base, reward, x, y, key, settings)[0]
    )
    ours = collect(frozen.base, noise, labels.astype(jnp.int32), keys[1])
    steps_first = lambda values: channels_first(jnp.moveaxis(values, 1, 0))  # noqa: E731
    gain = torch.tensor(settings.schedule.gain, dtype=torch.float32).reshape(-1, 1, 1, 1, 1)
    before, moved, wanted = (to_torch(network, tree) for tree in (frozen.base, after.model.params, frozen.base))
    wanted |= {name: value.detach().numpy() for name, value in theirs.model.state_dict().items()}
    change = lambda state: np.concatenate([(state[name] - before[name]).ravel() for name in before])  # noqa: E731
    return {
        "trajectories": _difference(steps_first(ours.states), buffer.states[:-1]),
        "targets": _difference(steps_first(ours.targets), buffer.base - 0.5 * gain**2 * buffer.adjoints),
        "loss": abs(float(metrics["loss"]) / statistics.fmean(losses) - 1),
        "change of the weights": _difference(torch.tensor(change(moved)), torch.tensor(change(wanted))),
    }


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def main() -> None:
    """Compares, then times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--threads", default=2, type=int, help="of PyTorch; XLA takes all cores that it may run on")
    parser.add_argument("--compiled", action="store_true", help="also both networks under torch.compile")
    options = parser.parse_args()
    if min(options.rounds, options.threads) < 1:
        parser.error("--rounds and --threads must be at least 1")
    torch.set_num_threads(options.threads)
    config = small()
    settings, frozen = adjoint.settings_from(config), frozen_networks(config)
    with jax.default_matmul_precision("highest"):
        found = compare(config, frozen)
    print("differences: " + ", ".join(f"{name} {value:.1e}" for name, value in found.items()), flush=True)
    if not found["loss"] <= 1e-4:
        raise SystemExit("the losses differ by more than 1e-4: nothing is timed")
    drawn = draws(config, settings, jax.random.key(0))
    sides = {"jaxdrl": fused_step(config, settings, frozen)}
    for name, cached in (("PyTorch", False), ("PyTorch, cached v_base", True)):
        sides[name] = _bound(rival(config, frozen, cached), drawn)
    if options.compiled:
        sides["torch.compile"] = _bound(rival(config, frozen, wrap=torch.compile), drawn)
    print("\n".join(table(list(sides), in_turn(list(sides.values()), options.rounds), config.posttrain.buffer_size)))


def _bound(side: AdjointMatching, drawn: Draws) -> Callable[[], Any]:
    return lambda: side.refresh(drawn)


def table(names: Sequence[str], timings: Sequence[Any], images: int) -> list[str]:
    """The sides as Markdown.

    Args:
        names: Ours first.
        timings: From `drl_step.in_turn`.
        images: Trajectories of a refresh.

    Returns:
        Lines; a ratio is the median over rounds, with the least and the greatest.
    """
    lines = ["| | a refresh, s | CPU s | images/s | times ours, wall | times ours, CPU |", "|---|---|---|---|---|---|"]
    for name, timing in zip(names, timings, strict=True):
        cells = [f"{timing.wall:.3g}", f"{timing.cpu:.3g}", f"{images / timing.wall:.3g}"]
        for theirs, ours in ((timing.walls, timings[0].walls), (timing.cpus, timings[0].cpus)):
            ratios = [one / other for one, other in zip(theirs, ours, strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
