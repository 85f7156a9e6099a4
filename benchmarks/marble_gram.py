r"""Where MARBLE's Gram matrix may come from: how far each cheap one is from the exact one, and what a step costs.

    python benchmarks/marble_gram.py --out=runs/marble_gram [--only=error,speed] [--seeds=0,1,2] [--refreshes=40] [--rounds=15]
        [--counts=1,2,5,8] [--generators=digits,wider]

error   DiffusionNFT on five rewards (configs/marble_digits.py), the exact program at every step. At each minibatch every reward's
        gradient is computed on 16 parts, and their inner products kept by layer: every estimator below is then arithmetic on the same
        numbers. |alpha - alpha*|_1 and the least true cosine are those of the step that would be taken; held out: estimator and step
        see one half of the minibatch, the cosines are with the gradients of the other half.
speed   one update with 1, 2, 5 and 8 rewards on the same batch, in CPU time of the process: variants take turns, and ratios are to a
        single reward's step in the same round, medians over rounds; on the digits' generator (width 16, depth 2, 16 tokens; 240 samples
        at 9 times) and on a wider one (width 128, depth 6, 64 tokens; 32 samples at one time). Pin it to one core (`taskset -c 0`);
        beside other work ratios still vary by a few hundredths.

Prints Markdown tables (errors: mean and standard deviation over seeds) and writes OUT/error.json and OUT/speed.json.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from configs import marble_digits
from jaxdrl import rewards
from jaxdrl.algorithms import advantages, nft
from jaxdrl.balancing import gradients, marble
from jaxdrl.training import loading, models
from jaxdrl.training.methods import common, policy

PARTS, BURN = 16, 10  # of a minibatch; steps before the averages are looked at
LAYERS = {
    "all layers": "",
    "last linear": "^final_.*linear",
    "head": "^final_",
    "last linear, last block": "^final_.*linear|^blocks_1/",
    "head, last block": "^final_|^blocks_1/",
    "biases": "bias$",
}
COLUMNS = ("cosine_error", "correlation", "within_pair", "alpha_error", "least_cosine", "tenth", "all_positive", "held_out")
PROGRAM = marble.Settings()
Grams = dict[str, np.ndarray]  # name of layers -> [steps, parts, rewards, parts, rewards]
_balance = jax.jit(jax.vmap(partial(marble.balance, settings=PROGRAM)))
_coefficients = jax.jit(jax.vmap(partial(marble.direction_coefficients, settings=PROGRAM)))


def main() -> None:
    """Runs the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--only", default=("error", "speed"), type=lambda text: text.split(","))
    parser.add_argument("--seeds", default=[0, 1, 2], type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--refreshes", default=40, type=int, help="of two minibatches each")
    parser.add_argument("--rounds", default=15, type=int)
    parser.add_argument("--counts", default=[1, 2, 5, 8], type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--generators", default=["digits", "wider"], type=lambda text: text.split(","))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.only:
        found = {"error": error, "speed": speed}[part](options)
        (options.out / f"{part}.json").write_text(json.dumps(found, indent=2))


def error(options: argparse.Namespace) -> dict[str, Any]:
    """Every estimator against the exact Gram matrix of the same minibatch.

    Args:
        options: The command line.

    Returns:
        Numbers by seed and estimator.
    """
    workdir, root, found = options.out / "run", Path(__file__).parent.parent, {}
    command = ["jaxdrl", "discriminator", f"--config={root / 'configs' / 'marble_digits.py'}", f"--workdir={workdir.resolve()}"]
    subprocess.run([sys.executable, "-m", *command], check=True, cwd=root)
    for seed in options.seeds:
        grams = record(workdir, seed, options.refreshes)
        found[seed] = {name: measure(grams, estimate) for name, estimate in estimators().items()}
        print(f"seed {seed}: {len(grams['all layers'])} minibatches, the first {BURN} left out", flush=True)
    print(f"\n| estimator | {' | '.join(name.replace('_', ' ') for name in COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for name in estimators():
        values = {column: [found[seed][name][column] for seed in options.seeds] for column in COLUMNS}
        print(f"| {name} | {' | '.join(f'{np.mean(seeds):.3f} ({np.std(seeds):.3f})' for seeds in values.values())} |")
    return found


def record(workdir: Path, seed: int, refreshes: int) -> Grams:
    """Trains with the exact program and keeps inner products.

    Args:
        workdir: Of a run with a discriminator.
        seed: Of noise, labels and order.
        refreshes: How many.

    Returns:
        <g_k on part a, g_l on part b>, whose sum over parts is the minibatch's Gram matrix.
    """
    config: Any = marble_digits.get_config()
    root, kept = jax.random.key(seed), []
    options = config.posttrain
    settings: Any = policy.settings_from(config)
    base, optimizer = loading.load_model(config, workdir, "base"), common.optimizer(config)[0]
    roll, update = jax.jit(_roller(config, settings, workdir)), jax.jit(_updater(config, settings))
    model, move = nft.create(base, optimizer), jax.jit(lambda model: nft.update_old(model, settings.algorithm))
    for refresh in range(refreshes):
        roll_key, order_key, *keys = jax.random.split(jax.random.fold_in(root, refresh), 4)
        buffer = roll(model.old, roll_key)
        order = jax.random.permutation(order_key, options.buffer_size).reshape(2, options.batch_size)
        for index, key in zip(order, keys, strict=True):
            model, products = update(model, jax.tree.map(lambda values, index=index: values[index], buffer), key)
            kept.append(jax.device_get(products))
        model = move(model)
    return {name: np.stack([products[name] for products in kept]).astype(np.float64) for name in LAYERS}


def _roller(config: Any, settings: Any, workdir: Path) -> Callable[..., nft.Buffer]:
    """(old policy, key) -> samples with advantages."""
    options, network = config.posttrain, models.backbone(config)
    encoder, head = loading.load_encoder(config, workdir, "reward"), loading.load_discriminator(workdir)
    features = models.features(config, "reward")
    given: dict[str, dict[str, Any]] = {"discriminator": {"params": head, "features": lambda images: features(encoder, images)}}
    chosen = [rewards.create(name, label=name, **given.get(name, {})) for name in settings.names]
    groups = jnp.arange(options.buffer_size) // options.group_size

    def roll(old: Any, key: Any) -> nft.Buffer:
        noise_key, seed_key = jax.random.split(key)
        noise, labels = jax.random.normal(noise_key, (options.buffer_size, *network.sample_shape)), groups % network.num_classes
        buffer, _ = nft.collect(network.velocity, old, noise, labels, seed_key, settings.algorithm)
        values = jnp.stack([reward(buffer.samples, labels) for reward in chosen])
        found, _ = advantages.group_advantages(values, groups, options.buffer_size // options.group_size, settings.advantages)
        return buffer._replace(advantages=found.T)

    return roll


def _updater(config: Any, settings: Any) -> Callable[..., tuple[nft.State, dict[str, Any]]]:
    """(state, minibatch, key) -> the state after an exact step, and inner products by layers."""
    velocity, optimizer = models.backbone(config).velocity, common.optimizer(config)[0]

    def update(model: nft.State, batch: nft.Buffer, key: Any):
        def part_gradients(part):
            losses = lambda params: nft.loss(velocity, params, model.old, model.reference, part, key, settings.algorithm)  # noqa: E731
            sums, pullback, (weights, _) = jax.vjp(losses, model.params, has_aux=True)
            return jax.lax.map(lambda row: pullback(row)[0], jnp.eye(len(sums))), weights

        parts, weights = jax.lax.map(part_gradients, gradients.split(batch, PARTS))
        total = weights.sum(axis=0)
        parts = jax.tree.map(lambda leaf: leaf / total.reshape((1, -1) + (1,) * (leaf.ndim - 2)), parts)
        flat = lambda leaf: leaf[:, :-1].reshape(-1, *leaf.shape[2:])  # noqa: E731
        shape = (PARTS, len(total) - 1, PARTS, len(total) - 1)
        products = {}
        for name, pattern in LAYERS.items():
            taken = gradients.matching(model.params, (pattern,))
            chosen = [flat(leaf) for leaf, take in zip(jax.tree.leaves(parts), taken, strict=True) if take]
            products[name] = marble.gram(chosen).reshape(shape)
        whole = jax.tree.map(lambda leaf: leaf.sum(axis=0), parts)
        alpha, norms = marble.balance(products["all layers"].sum(axis=(0, 2)), PROGRAM)
        step = marble.weighted_sum(whole, jnp.append(marble.direction_coefficients(alpha, norms, PROGRAM), 1.0))
        return nft.apply_gradients(model, step, optimizer, settings.algorithm), products

    return update


def estimators() -> dict[str, Callable[[Grams], tuple[np.ndarray, ...]]]:
    """What is compared.

    Returns:
        name -> (inner products by part -> (Gram matrices, alpha, coefficients of the gradients), a step each).
    """
    found: dict[str, Callable[[Grams], tuple[np.ndarray, ...]]] = {"amortised, N = 10, rho = .7": _amortised}
    for layers in LAYERS:
        for rho in (0.0, 0.3, 0.5, 0.7, 0.9):
            found[f"{layers}, rho = {rho}"] = lambda grams, layers=layers, rho=rho: _solved(_summed(grams[layers]), rho)
    for share in (2, 4, 8):
        for rho in (0.0, 0.7, 0.9):
            cut = lambda grams, share=share, rho=rho: _solved(_summed(grams["all layers"], share), rho)  # noqa: E731
            found[f"1/{share} of the batch, rho = {rho}"] = cut
    even = lambda grams: (np.broadcast_to(np.eye(5), _summed(grams["head"]).shape), *_equal(_summed(grams["all layers"])))  # noqa: E731
    found["equal weights of unit gradients"] = even
    return found


def _summed(products: np.ndarray, share: int = 1) -> np.ndarray:
    """Gram matrices of the first 1 / share of the parts; scale does not matter."""
    parts = products.shape[1] // share
    return products[:, :parts, :, :parts].sum(axis=(1, 3))


def _solved(grams: np.ndarray, rho: float) -> tuple[np.ndarray, ...]:
    averaged = [grams[0]]
    for gram in grams[1:]:
        averaged.append(rho * averaged[-1] + (1 - rho) * gram)
    alpha, norms = _balance(jnp.asarray(np.stack(averaged), jnp.float32))
    return np.stack(averaged), np.asarray(alpha), np.asarray(_coefficients(alpha, norms))


def _amortised(grams: Grams) -> tuple[np.ndarray, ...]:
    """As `gradients.balanced` does it: between full steps averaged weights, of the gradients as they are."""
    exact, smooth = _summed(grams["all layers"]), np.zeros(5)
    _, alpha, coefficients = (np.array(values) for values in _solved(exact, 0.0))
    for step in range(len(exact)):
        if step % PROGRAM.solve_every == 0:
            smooth = np.asarray(marble.smooth(jnp.asarray(smooth), jnp.asarray(alpha[step]), PROGRAM.decay))
        else:
            alpha[step] = coefficients[step] = smooth
    return exact[np.arange(len(exact)) // PROGRAM.solve_every * PROGRAM.solve_every], alpha, coefficients


def _equal(grams: np.ndarray) -> tuple[np.ndarray, ...]:
    alpha = np.full(grams.shape[:2], 1 / grams.shape[1])
    return alpha, alpha / np.sqrt(np.einsum("tkk->tk", grams))


def measure(grams: Grams, estimate: Callable[[Grams], tuple[np.ndarray, ...]]) -> dict[str, float]:
    """One estimator's errors.

    Args:
        grams: From `record`.
        estimate: One of `estimators`.

    Returns:
        Mean absolute error of the cosines off the diagonal; their correlation with the exact ones over steps and pairs, and that of
        each pair over steps, averaged; mean |alpha - alpha*|_1; mean and 10 % quantile of the least true cosine, and the share of
        steps in which all are positive; and the mean of the least cosine with gradients of the other half.
    """
    exact, (estimated, alpha, coefficients) = _summed(grams["all layers"]), estimate(grams)
    pairs = np.triu_indices(exact.shape[1], 1)
    ours, true = (_cosines(values)[BURN:, *pairs] for values in (estimated, exact))
    least = _with_update(exact, exact, exact, coefficients)[BURN:].min(axis=1)
    within = [np.corrcoef(a, b)[0, 1] for a, b in zip(ours.T, true.T, strict=True) if a.std() > 0]
    halves, held = (slice(None, PARTS // 2), slice(PARTS // 2, None)), []
    for one, other in (halves, halves[::-1]):
        inside = {name: products[:, one, :, one] for name, products in grams.items()}
        own, theirs, cross = (
            grams["all layers"][:, a, :, b].sum(axis=(1, 3)) for a, b in ((one, one), (other, other), (other, one))
        )
        held.append(_with_update(cross, own, theirs, estimate(inside)[2])[BURN:].min(axis=1))
    return {
        "cosine_error": float(np.abs(ours - true).mean()),
        "correlation": float(np.corrcoef(ours.ravel(), true.ravel())[0, 1]) if within else float("nan"),
        "within_pair": float(np.mean(within)) if within else float("nan"),
        "alpha_error": float(np.abs(alpha - _solved(exact, 0.0)[1])[BURN:].sum(axis=1).mean()),
        "least_cosine": float(least.mean()),
        "tenth": float(np.quantile(least, 0.1)),
        "all_positive": float((least > 0).mean()),
        "held_out": float(np.mean(held)),
        "held_out_error": float(np.std(held) / np.sqrt(np.size(held))),
    }


def _cosines(grams: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.einsum("tkk->tk", grams))
    return grams / (norms[:, :, None] * norms[:, None])


def _with_update(cross: np.ndarray, own: np.ndarray, theirs: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Cosines of gradients (squared norms: diagonal of `theirs`) with sum_k c_k g_k (inner products: `own`)."""
    length = np.sqrt(np.einsum("tk,tkl,tl->t", coefficients, own, coefficients))
    return np.einsum("tkl,tl->tk", cross, coefficients) / (np.sqrt(np.einsum("tkk->tk", theirs)) * length[:, None])


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """One update by every rule.

    Args:
        options: The command line.

    Returns:
        Ratios and seconds by generator, number of rewards and rule.
    """
    found = {}
    for name in options.generators:
        config: Any = marble_digits.get_config()
        if name == "wider":
            config.backbone.update(width=128, depth=6, num_heads=4)
            config.data.image_shape, config.posttrain.batch_size = (16, 16, 1), 32
            config.posttrain.nft.times_per_sample = 1
        found[name] = _timed(config, options.counts, options.rounds)
        print(f"\n{name}; a single reward's step: {found[name]['single']:.3f} s of CPU time\n")
        print(f"| rule | {' | '.join(f'K = {count}' for count in options.counts)} |\n|{'---|' * (len(options.counts) + 1)}")
        for rule, ratios in found[name]["speed"].items():
            print(f"| {rule} | {' | '.join(f'{ratios[count]:.3f}' for count in options.counts)} |", flush=True)
    return found


def _timed(config: Any, counts: list[int], rounds: int) -> dict[str, Any]:
    """Speed, a single reward's seconds over the rule's, in the median round."""
    variants = {("single", 1): _step(config, 1, None)}
    for count in counts:
        for gram in ("equal weights", "exact", "amortised", "sketch"):
            variants[gram, count] = _step(config, count, gram)
    seconds = {name: [] for name in variants}
    for step in variants.values():
        step()
    for turn in range(rounds):
        # Another order each round, so that no variant always comes after the same one.
        for name in np.random.default_rng(turn).permutation(len(variants)):
            label = list(variants)[name]
            began = time.process_time()
            variants[label]()
            seconds[label].append(time.process_time() - began)
    single = np.array(seconds["single", 1])
    inverse = {label: np.median(np.array(values) / single) for label, values in seconds.items()}
    table: dict[str, dict[int, float]] = {}
    for (rule, count), ratio in inverse.items():
        if rule == "amortised":  # timed between two full steps
            every = PROGRAM.solve_every
            ratio = (inverse["exact", count] + (every - 1) * ratio) / every
        if rule != "single":
            table.setdefault(rule, {})[count] = float(1 / ratio)
    fastest = {f"{rule}, K = {count}": min(values) for (rule, count), values in seconds.items()}
    return {"single": float(np.median(single)), "speed": table, "fastest_seconds": fastest}


def _step(config: Any, count: int, gram: str | None) -> Callable[[], Any]:
    """A compiled update on a batch of its own; None is a single reward's, without a balance."""
    network, rng = models.backbone(config), np.random.default_rng(0)
    settings: Any = policy.settings_from(config)
    size, optimizer = config.posttrain.batch_size, common.optimizer(config)[0]
    template = jax.eval_shape(network.init, jax.random.key(0))
    draw = lambda: jax.tree.map(lambda leaf: jnp.asarray(0.05 * rng.standard_normal(leaf.shape, np.float32)), template)  # noqa: E731
    model = nft.create(draw(), optimizer)._replace(old=draw(), reference=draw(), step=jnp.int32(1))
    batch = nft.Buffer(
        samples=jnp.asarray(rng.standard_normal((size, *network.sample_shape), np.float32)),
        labels=jnp.asarray(rng.integers(0, network.num_classes, size), jnp.int32),
        seeds=jnp.asarray(rng.integers(0, 2**32, size, np.uint32)),
        advantages=jnp.asarray(rng.standard_normal((size, count), np.float32)),
    )
    balance = gradients.Settings(gram=gram) if gram in gradients.GRAMS else gradients.Settings()

    def update(model: nft.State, state: gradients.State, batch: nft.Buffer):
        losses = lambda params, part: nft.loss(  # noqa: E731
            network.velocity, params, model.old, model.reference, part, jax.random.key(1), settings.algorithm
        )
        if gram in gradients.GRAMS:
            found, state, metrics = gradients.balanced(losses, model.params, batch, state, model.step, balance)
        else:
            found, metrics = gradients.combined(losses, model.params, batch, jnp.append(jnp.full(count, 1 / count), 1.0))
        return nft.apply_gradients(model, found, optimizer, settings.algorithm), state, metrics

    state = gradients.State(jnp.full(count, 1 / count), jnp.eye(count))
    compiled = jax.jit(update).lower(model, state, batch).compile()
    return lambda: jax.block_until_ready(compiled(model, state, batch))


if __name__ == "__main__":
    main()
