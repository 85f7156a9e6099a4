"""Full published sizes against the authors' code, and the table of `docs/parity.md`.

    python -m tests.golden.published --code=DIR [--models=SiT-XL/2,...] [--out=docs/parity.md]

DIR as for `make.py`. Every learned tensor is drawn at random (0.02 around 0, or around 1 for norms), two inputs, times 0.37 and 0.93, a
class and the null class, float32, matmul precision "highest". Compared: names, shapes and number of tensors, outputs, gradients with
respect to the input, and the state dict after a round trip, bit for bit. `pytest -m published` runs the same comparison, model by model.
"""

import argparse
import gc
import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tests.golden import official

BEGIN, END = "<!-- published sizes: begin -->", "<!-- published sizes: end -->"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One model's comparison.

    Attributes:
        model: Its name.
        parameters: As the authors' module counts them.
        same_count: Whether ours are as many.
        output: Relative error.
        gradient: Relative error of the input gradient.
        seconds: Of our gradient, after compiling.
        torch_seconds: Of theirs.
        round_trip: Whether every tensor came back bit for bit.
    """

    model: str
    parameters: int
    same_count: bool
    output: float
    gradient: float
    seconds: float
    torch_seconds: float
    round_trip: bool


def compare(model: str, code: Path) -> Result:
    """Runs both and compares."""
    torch = official.prepare()
    network = official.published(model, code)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in network.named_parameters():
            if parameter.requires_grad or name == "t_embedder.W":
                parameter.normal_(0.0, 0.02 if name != "t_embedder.W" else 1.0)
                parameter += float("norm" in name and name.endswith("weight"))
    count = sum(parameter.numel() for parameter in network.parameters())
    from jaxdrl import backbones

    ours = backbones.create(model)
    x = rng.standard_normal((2, *ours.sample_shape)).astype(np.float32)
    t = np.array([0.37, 0.93], np.float32) * (1000 if ours.family == "DiT" else 1)
    y = np.array([207, 1000], np.int32)
    expected, gradient, torch_seconds, weight = _theirs(network, torch, x, t, y)
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    digests = {key: _digest(value) for key, value in state.items()}
    from jaxdrl.weights import from_torch, to_torch

    params = from_torch(model, state)
    del network, state
    gc.collect()
    back = to_torch(model, params)
    fixed = [key for key in digests if "rope" in key or key == "pos_embed"]
    same = {key: _digest(value) == digests.get(key) for key, value in back.items() if key not in fixed}
    round_trip = set(back) == set(digests) and all(same.values())
    del back
    gc.collect()
    found, slope, seconds = _ours(ours, params, x, t, y, weight)
    return Result(
        model=model,
        parameters=count,
        same_count=ours.num_params == count,
        output=_error(found, expected),
        gradient=_error(slope, gradient),
        seconds=seconds,
        torch_seconds=torch_seconds,
        round_trip=round_trip,
    )


def _theirs(network, torch, x, t, y):
    images = torch.tensor(x.transpose(0, 3, 1, 2)).requires_grad_(True)
    for _ in range(2):  # the second run is timed
        began = time.perf_counter()
        out = network(images, torch.tensor(t), torch.tensor(y).long())
        out = out[0] if isinstance(out, tuple) else out
        weight = np.random.default_rng(2).standard_normal(tuple(out.shape)).astype(np.float32)
        (gradient,) = torch.autograd.grad((out * torch.tensor(weight)).sum(), images)
        seconds = time.perf_counter() - began
    last = lambda value: value.detach().numpy().transpose(0, 2, 3, 1)  # noqa: E731
    return last(out), last(gradient), seconds, weight.transpose(0, 2, 3, 1)


def _ours(network, params, x, t, y, weight):
    import jax
    import jax.numpy as jnp

    with jax.default_matmul_precision("highest"):

        @jax.jit
        def both(params, x):
            out, pullback = jax.vjp(lambda x: network.predict(params, x, t, y), x)
            return out, pullback(jnp.asarray(weight))[0]

        params = jax.tree.map(jnp.asarray, params)
        jax.block_until_ready(both(params, x))
        began = time.perf_counter()
        found, slope = jax.block_until_ready(both(params, x))
        return np.asarray(found), np.asarray(slope), time.perf_counter() - began


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _digest(value: np.ndarray) -> str:
    return hashlib.sha256(f"{value.shape}".encode() + np.ascontiguousarray(value, np.float32).tobytes()).hexdigest()


def table(results: list[Result]) -> str:
    """The table as Markdown."""
    lines = [
        "| model | parameters | output | input gradient | round trip | jax s | torch s |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        same = "bit for bit" if r.round_trip else "DIFFERS"
        count = f"{r.parameters:,}" + ("" if r.same_count else " (ours differ)")
        lines.append(
            f"| {r.model} | {count} | {r.output:.1e} | {r.gradient:.1e} | {same} | {r.seconds:.1f} | {r.torch_seconds:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Compares one model after the other, each in a process of its own, and writes the table."""
    import multiprocessing

    from jaxdrl import backbones

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", required=True, type=Path)
    parser.add_argument("--models", default=",".join(backbones.PUBLISHED))
    parser.add_argument("--out", type=Path, help="put the table between the marks in this file")
    parser.add_argument("--log", type=Path, help="results so far, JSON; models in it are not run again")
    options = parser.parse_args()
    known = json.loads(options.log.read_text()) if options.log and options.log.exists() else []
    results = [Result(**entry) for entry in known]
    for model in options.models.split(","):
        if any(result.model == model for result in results):
            continue
        # A fresh process gives its memory back.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results.append(pool.apply(compare, (model, options.code)))
        print(table(results[-1:]).splitlines()[-1], flush=True)
        if options.log:
            options.log.write_text(json.dumps([asdict(result) for result in results], indent=1))
    order = list(backbones.PUBLISHED)
    results.sort(key=lambda result: order.index(result.model))
    if options.out:
        text = options.out.read_text()
        before, rest = text.split(BEGIN)
        options.out.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
