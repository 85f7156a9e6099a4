r"""Features and image gradients of published encoders, in images a second, beside their PyTorch originals.

    python benchmarks/encoders.py [--models=dinov2-base,dinov2-large,inception-v3-fid] [--batch=4] [--rounds=5] [--code=DIR]

transformers' modules (and, for Inception, torch-fidelity's in a clone DIR/torch-fidelity) with the same random weights, on images of the
encoder's own resolution; jax and torch take turns on the same cores, and the median of the rounds is shown. Outputs are compared first.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))


def main() -> None:
    """Times every encoder and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="dinov2-base,dinov2-large,inception-v3-fid", type=lambda text: text.split(","))
    parser.add_argument("--batch", default=4, type=int)
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--code", type=Path, help="where torch-fidelity is cloned")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    options = parser.parse_args()
    print("| encoder | pass | jax images/s | torch images/s | jax / torch |\n|---|---|---|---|---|")
    for model in options.models:
        for name, ours, rival in measure(model, options):
            print(f"| {model} | {name} | {ours:.2f} | {rival:.2f} | {ours / rival:.2f} |", flush=True)


def measure(model: str, options: argparse.Namespace) -> list[tuple[str, float, float]]:
    """Times one encoder.

    Args:
        model: A published name.
        options: The command line.

    Returns:
        (pass, jax images a second, torch images a second).
    """
    import jax
    import jax.numpy as jnp
    import torch

    from jaxdrl import encoders

    encoder = encoders.create(model, **({} if model.startswith("inception") else {"dtype": options.dtype}))
    network, state, pooled = original(model, options, torch)
    from jaxdrl.weights import from_torch

    params = from_torch(encoder, state, place=jnp.asarray)
    how = encoder.preprocess
    if how is None:
        raise SystemExit(f"{model} is trained here and has no PyTorch original")
    images = np.random.default_rng(0).uniform(-1, 1, (options.batch, *how.size, 3)).astype(np.float32)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.to(device)
    seen = torch.tensor(np.asarray(how(jnp.asarray(images))).transpose(0, 3, 1, 2), device=device)
    features = jax.jit(lambda params, images: encoder.features(params, images)["pooled"])
    gradient = jax.jit(jax.grad(lambda images, params: jnp.sum(encoder.features(params, images)["pooled"] ** 2)))
    cast = lambda: torch.autocast(device, torch.bfloat16, enabled=options.dtype == "bfloat16")  # noqa: E731

    def torch_features():
        with torch.no_grad(), cast():
            return pooled(network, seen).float().cpu().numpy()

    def torch_gradient():
        leaf = seen.clone().requires_grad_(True)
        with cast():
            value = (pooled(network, leaf).float() ** 2).sum()
        return torch.autograd.grad(value, leaf)[0].cpu()

    found, expected = np.asarray(features(params, images)), torch_features()
    error = np.abs(found - expected).max() / np.abs(expected).max()
    if error > (1e-3 if options.dtype == "float32" else 0.1):
        raise SystemExit(f"{model}: features differ by {error:.1e}")
    pairs = {
        "features": (lambda: np.asarray(features(params, images)), torch_features),
        "image gradient": (lambda: np.asarray(gradient(images, params)), torch_gradient),
    }
    return [(name, *(options.batch / seconds for seconds in in_turn(calls, options.rounds))) for name, calls in pairs.items()]


def in_turn(calls, rounds: int) -> list[float]:
    """Medians of calls that take turns.

    Args:
        calls: Without arguments.
        rounds: How many.

    Returns:
        Seconds a call.
    """
    for call in calls:
        call()
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, times in zip(calls, taken, strict=True):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
    return [statistics.median(times) for times in taken]


def original(model: str, options: argparse.Namespace, torch):
    """The PyTorch module, its file's content, and its pooled feature.

    Args:
        model: A published name.
        options: The command line.
        torch: The library.

    Returns:
        (module, names -> arrays, (module, images) -> features).
    """
    import tempfile

    from jaxdrl.weights import torch_files

    if model.startswith("inception"):
        from tests.golden import make

        network = make.inception_network(options.code, torch)
        state = {key: value.numpy() for key, value in network.state_dict().items()}
        return network, state, lambda network, images: make.inception_outputs(network, images)["pool"]
    from tests.golden import published_encoders

    network, _, family = published_encoders.theirs(model)
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder, max_shard_size="100GB")
        file = torch_files.read(Path(folder) / "model.safetensors")
        state = {name: np.asarray(file[name]) for name in file}

    def pooled(network, images):
        out = network(images)
        if family == "clip":
            return out.image_embeds
        return out.pooler_output if family in ("siglip", "convnext") else out.last_hidden_state[:, 0]

    return network, state, pooled


if __name__ == "__main__":
    main()
