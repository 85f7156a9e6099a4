r"""Forward pass, gradient with respect to the input and train step of published networks, beside their PyTorch originals.

    python benchmarks/backbones.py --code=DIR --models=SiT-B/2,JiT-B/16,DiTDH-B --batch=2 --rounds=5 [--compile] [--scan]

DIR holds clones of the authors' repositories, see tests/golden/official.py. The same weights, the same inputs, the same
threads; jax and torch take turns, and the median of the rounds is shown, with compile times apart. Outputs are compared first: a
fast wrong network is worth nothing. On CPU in float32 by default; on a GPU both run where they find one.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np


def main() -> None:
    """Times every model and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", required=True, type=Path)
    parser.add_argument("--models", default="SiT-B/2,JiT-B/16,DiTDH-B", type=lambda text: text.split(","))
    parser.add_argument("--batch", default=2, type=int)
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--passes", default="forward,input gradient,train step", type=lambda text: text.split(","))
    parser.add_argument("--scan", action="store_true", help="scan over layers")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--out", type=Path, help="also write JSON")
    options = parser.parse_args()
    if not options.compile:
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    rows = [row for model in options.models for row in measure(model, options)]
    print("| model | pass | jax ms | torch ms | torch.compile ms | jax / torch | jax compile s |\n|---|---|---|---|---|---|---|")
    for row in rows:
        compiled = f"{row['compiled']:.0f}" if "compiled" in row else ""
        print(
            f"| {row['model']} | {row['pass']} | {row['jax']:.0f} | {row['torch']:.0f} | {compiled} | "
            f"{row['jax'] / row['torch']:.2f} | {row['jax_compile']:.1f} |"
        )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2))


def measure(model: str, options: argparse.Namespace) -> list[dict]:
    """Times one model.

    Args:
        model: A published name.
        options: The command line.

    Returns:
        A row a pass, medians in milliseconds.
    """
    import jax
    import jax.numpy as jnp

    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.golden import official

    torch = official.prepare()
    from jaxdrl import backbones
    from jaxdrl.weights import from_torch

    network = backbones.create(model, dtype=options.dtype, scan_layers=options.scan, remat=options.remat)
    theirs = official.published(model, options.code)
    rng = np.random.default_rng(0)
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    learned = {key for key, parameter in theirs.named_parameters() if parameter.requires_grad}
    state = {k: (v + 0.02 * rng.standard_normal(v.shape)).astype(np.float32) if k in learned else v for k, v in state.items()}
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    x = rng.standard_normal((options.batch, *network.sample_shape)).astype(np.float32)
    t, y = rng.uniform(size=options.batch).astype(np.float32), np.arange(options.batch, dtype=np.int32)
    params = jax.tree.map(jnp.asarray, from_torch(network, state))
    del state
    ours = {name: call for name, call in jax_passes(network, params, x, t, y).items() if name in options.passes}
    rivals = {"torch": torch_passes(theirs, x, t, y, torch, options.dtype)}
    if options.compile:
        rivals["compiled"] = torch_passes(torch.compile(theirs), x, t, y, torch, options.dtype)
    first_calls = {name: seconds(call) for name, call in ours.items()}
    found, expected = jax_passes(network, params, x, t, y)["forward"](), rivals["torch"]["forward"]().transpose(0, 2, 3, 1)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    if error > (1e-3 if options.dtype == "float32" else 0.1):
        raise SystemExit(f"{model}: outputs differ by {error:.1e}")
    return [
        {"model": model, "pass": name, "jax_compile": first_calls[name], **timed(name, ours, rivals, options.rounds)}
        for name in ours
    ]


def seconds(call) -> float:
    """How long a call takes.

    Args:
        call: Without arguments; returns when the work is done.

    Returns:
        Seconds.
    """
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def timed(name: str, ours: dict, rivals: dict, rounds: int) -> dict[str, float]:
    """Medians of one pass, jax and torch in turn.

    Args:
        name: Of the pass.
        ours: Pass -> call.
        rivals: Library -> pass -> call.
        rounds: How many.

    Returns:
        "jax", "torch" (and "compiled") in milliseconds.
    """
    calls = {"jax": ours[name]} | {library: passes[name] for library, passes in rivals.items()}
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {library: [] for library in calls}
    for _ in range(rounds):
        for library, call in calls.items():
            taken[library].append(seconds(call))
    return {library: 1000 * statistics.median(values) for library, values in taken.items()}


def jax_passes(network, params, x, t, y) -> dict:
    """Compiled calls that wait for their result.

    Args:
        network: A backbone.
        params: Its parameters.
        x: Noisy samples.
        t: Times.
        y: Classes.

    Returns:
        "forward", "input gradient" and "train step" (Adam).
    """
    import jax
    import jax.numpy as jnp
    import optax

    forward = jax.jit(lambda params, x: network.predict(params, x, t, y))
    gradient = jax.jit(jax.grad(lambda x, params: jnp.sum(network.predict(params, x, t, y) ** 2)))
    optimizer = optax.adam(1e-4)

    @jax.jit
    def step(params, state, x):
        grads = jax.grad(lambda p: jnp.mean(network.predict(p, x, t, y) ** 2))(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    states: list = []

    def train():
        # Made when it is asked for: with large networks memory counts.
        states[:] = states or [optimizer.init(params)]
        return ready(step(params, states[0], x))

    ready = jax.block_until_ready
    return {
        "forward": lambda: np.asarray(forward(params, x)),
        "input gradient": lambda: ready(gradient(x, params)),
        "train step": train,
    }


def torch_passes(theirs, x, t, y, torch, dtype: str) -> dict:
    """The same of the original.

    Args:
        theirs: The authors' module.
        x: Noisy samples, NHWC.
        t: Times.
        y: Classes.
        torch: The library.
        dtype: "bfloat16" runs under autocast.

    Returns:
        As `jax_passes`.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    theirs = theirs.to(device)
    images = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).to(device)
    time_, labels = torch.from_numpy(t).to(device), torch.from_numpy(y).long().to(device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    cast = lambda: torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")  # noqa: E731
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-12)

    def forward():
        with torch.no_grad(), cast():
            out = theirs(images, time_, labels)
        return out.float().cpu().numpy()

    def gradient():
        leaf = images.clone().requires_grad_(True)
        with cast():
            out = theirs(leaf, time_, labels)
        torch.autograd.grad((out.float() ** 2).sum(), leaf)
        wait()

    def step():
        optimizer.zero_grad(set_to_none=True)
        with cast():
            out = theirs(images, time_, labels)
        (out.float() ** 2).mean().backward()
        optimizer.step()
        wait()

    return {"forward": forward, "input gradient": gradient, "train step": step}


if __name__ == "__main__":
    main()
