"""Full published encoders against transformers, and their table in `docs/parity.md`.

    python -m tests.golden.published_encoders [--models=dinov2-large,...] [--out=docs/parity.md]

Needs torch and transformers. Every tensor is drawn at random, written by `save_pretrained` and read from that file; two images at the
encoder's own resolution, float32, matmul precision "highest". Inception has the full size in the default suite already.
"""

import argparse
import gc
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

BEGIN, END = "<!-- published encoders: begin -->", "<!-- published encoders: end -->"
CLASSES = {
    "mae": "ViTMAEModel",
    "dinov3": "DINOv3ViTModel",
    "siglip": "SiglipVisionModel",
    "clip": "CLIPVisionModelWithProjection",
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """One encoder's comparison.

    Attributes:
        model: Its name.
        parameters: Of transformers' module.
        output: Relative error of tokens and pooled feature.
        gradient: Relative error of the image gradient.
        seconds: Of our gradient, after compiling.
        torch_seconds: Of theirs.
    """

    model: str
    parameters: int
    output: float
    gradient: float
    seconds: float
    torch_seconds: float


def theirs(name: str):
    """transformers' module of a published size, every tensor drawn."""
    import torch
    import transformers

    from jaxdrl import encoders
    from jaxdrl.encoders.published import PUBLISHED

    family, fields = PUBLISHED[name][0], dict(encoders.create(name).fields)
    resolution = fields["resolution"]
    if family == "convnext":
        kind = "ConvNextV2" if fields["v2"] else "ConvNext"
        settings = {"hidden_sizes": list(fields["widths"]), "depths": list(fields["depths"])}
        cls = getattr(transformers, f"{kind}Model")
    else:
        sizes = {"hidden_size": fields["width"], "num_hidden_layers": fields["depth"], "num_attention_heads": fields["num_heads"]}
        hidden = fields.get("hidden") or 4 * fields["width"]
        settings = sizes | {"patch_size": fields["patch_size"], "image_size": resolution, "intermediate_size": hidden}
        registers = "WithRegisters" if fields.get("registers") else ""
        cls = getattr(transformers, CLASSES.get(family, f"Dinov2{registers}Model"))
        if family == "dinov2":
            settings |= {"use_swiglu_ffn": fields.get("gated", False)}
        if family == "dinov3":
            gated = fields.get("gated", False)
            settings |= {"use_gated_mlp": gated, "hidden_act": "silu" if gated else "gelu", "num_register_tokens": 4}
            settings |= {} if fields.get("qkv_bias", True) else {"query_bias": False, "value_bias": False}
        if family == "clip":
            settings |= {"projection_dim": fields["projection_dim"], "hidden_act": fields["activation"]}
        if family == "mae":
            settings |= {"mask_ratio": 0.0}
    network = cls._from_config(cls.config_class(**settings), attn_implementation="eager").eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            parameter.normal_(0.0, 0.02)
            parameter += float(("norm" in key and key.endswith("weight") and parameter.ndim == 1) or "lambda1" in key)
            parameter += float("layer_scale_parameter" in key or key.endswith("grn.weight"))
    return network, fields, family


def compare(name: str) -> Result:
    """Runs both and compares."""
    import jax
    import jax.numpy as jnp
    import torch

    from jaxdrl import encoders
    from jaxdrl.weights import from_torch, torch_files

    network, fields, family = theirs(name)
    encoder = encoders.create(name)
    images = np.random.default_rng(0).uniform(-1, 1, (2, *encoder.preprocess.size, 3)).astype(np.float32)
    seen = torch.tensor(np.asarray(encoder.preprocess(jnp.asarray(images))).transpose(0, 3, 1, 2)).requires_grad_(True)
    options = {}
    if family == "mae":
        options["noise"] = torch.arange((fields["resolution"] // fields["patch_size"]) ** 2).float()[None].repeat(2, 1)
    weights = {}
    for _ in range(2):  # the second run is timed
        began = time.perf_counter()
        out = network(seen, **options)
        tokens = out.last_hidden_state[:, 1:] if family == "clip" else out.last_hidden_state
        found = [tokens]
        if family in ("clip", "siglip", "convnext"):
            found.append(out.image_embeds if family == "clip" else out.pooler_output)
        weights = [
            np.random.default_rng(i).standard_normal(tuple(value.shape)).astype(np.float32) for i, value in enumerate(found)
        ]
        total = sum((value * torch.tensor(weight)).sum() for value, weight in zip(found, weights, strict=True))
        (gradient,) = torch.autograd.grad(total, seen)
        torch_seconds = time.perf_counter() - began
    expected = [value.detach().numpy() for value in found]
    gradient, count = gradient.numpy().transpose(0, 2, 3, 1), sum(p.numel() for p in network.parameters())
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder, max_shard_size="100GB")
        del network, out, found, total, tokens
        gc.collect()
        params = from_torch(encoder, torch_files.read(Path(folder) / "model.safetensors"), place=jnp.asarray)
    scale = 0.5 / np.array(encoder.preprocess.std, np.float32)  # of the image, where theirs is of the normalised image
    with jax.default_matmul_precision("highest"):

        def outputs(params, images):
            kept = encoder.features(params, images)
            front = [kept["cls"][:, None]] if "cls" in kept and "projection" not in kept else []
            tokens = jnp.concatenate([*front, *([kept["registers"]] if "registers" in kept else []), kept["patches"]], axis=1)
            if family == "convnext":
                tokens = tokens.reshape(expected[0].shape[0], *expected[0].shape[2:], -1).transpose(0, 3, 1, 2)
            return [tokens, kept["pooled"]][: len(expected)]

        @jax.jit
        def both(params, images):
            values, pullback = jax.vjp(lambda images: outputs(params, images), images)
            return values, pullback([jnp.asarray(weight) for weight in weights])[0]

        jax.block_until_ready(both(params, images))
        began = time.perf_counter()
        values, slope = jax.block_until_ready(both(params, images))
        seconds = time.perf_counter() - began
    error = lambda a, b: float(np.abs(np.asarray(a) - b).max() / np.abs(b).max())  # noqa: E731
    return Result(
        model=name,
        parameters=count,
        output=max(error(a, b) for a, b in zip(values, expected, strict=True)),
        gradient=error(np.asarray(slope) / scale, gradient),
        seconds=seconds,
        torch_seconds=torch_seconds,
    )


def table(results: list[Result]) -> str:
    """The table as Markdown."""
    lines = ["| encoder | parameters | output | image gradient | jax s | torch s |", "|---|---|---|---|---|---|"]
    for r in results:
        lines.append(
            f"| {r.model} | {r.parameters:,} | {r.output:.1e} | {r.gradient:.1e} | {r.seconds:.1f} | {r.torch_seconds:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Compares one encoder after the other, each in a process of its own, and writes the table."""
    import multiprocessing

    from jaxdrl.encoders.published import PUBLISHED

    default = [name for name in PUBLISHED if name not in ("inception-v3-fid", "dinov3-vit7b16")]  # 7B needs 60 GB here
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(default))
    parser.add_argument("--out", type=Path, help="put the table between the marks in this file")
    parser.add_argument("--log", type=Path, help="results so far, JSON; encoders in it are not run again")
    options = parser.parse_args()
    known = json.loads(options.log.read_text()) if options.log and options.log.exists() else []
    results = [Result(**entry) for entry in known]
    for model in options.models.split(","):
        if any(result.model == model for result in results):
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results.append(pool.apply(compare, (model,)))
        print(table(results[-1:]).splitlines()[-1], flush=True)
        if options.log:
            options.log.write_text(json.dumps([asdict(result) for result in results], indent=1))
    results.sort(key=lambda result: default.index(result.model))
    if options.out:
        text = options.out.read_text()
        before, rest = text.split(BEGIN)
        options.out.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
