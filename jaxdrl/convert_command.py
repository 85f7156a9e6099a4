"""`jaxdrl convert` and `jaxdrl export`: the authors' PyTorch files in, and out again."""

import argparse
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxdrl.errors import UserError

CONVERT_HELP = """usage: jaxdrl convert --model=NAME --from=FILE --to=DIR [--weights=ema|raw]

  --model    a published name: SiT-XL/2, DiT-XL/2, REPA-SiT-XL/2, JiT-H/16, DiTDH-XL ..., sd-vae (`--model=list` prints all)
  --from     .safetensors, or .pt/.pth (needs torch; a pickle that wants to run code is refused)
  --to       a new folder: model.json and an Orbax checkpoint
  --weights  which weights of a training checkpoint: ema (default) or raw
"""
EXPORT_HELP = """usage: jaxdrl export --from=DIR --to=FILE [--layout=original|diffusers]

  --from     a folder that `jaxdrl convert` made
  --to       .safetensors, or .pt/.pth (needs torch); the authors' code loads it with strict=True
  --layout   original (default), or diffusers for DiT
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Mistakes become one line and exit code 2, as everywhere."""
        raise UserError(f"{message}; see `{self.prog} --help`")


def convert(arguments: Sequence[str]) -> int:
    """Runs `jaxdrl convert`.

    Args:
        arguments: After the command's name.

    Returns:
        0.

    Raises:
        UserError: If a file is missing or does not fit the model, or the folder is not empty.
    """
    parser = _Parser(prog="jaxdrl convert", add_help=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--from", dest="source", type=Path)
    parser.add_argument("--to", type=Path)
    parser.add_argument("--weights", default="ema")
    options = parser.parse_args(arguments)
    from jaxdrl import backbones, tokenizers

    if options.model == "list":
        print("\n".join([*backbones.PUBLISHED, *tokenizers.PUBLISHED]))
        return 0
    if options.source is None or options.to is None:
        raise UserError("--from and --to are needed; see `jaxdrl convert --help`")
    import jax

    from jaxdrl.training import mesh
    from jaxdrl.weights import convert as converter
    from jaxdrl.weights import model_directory, torch_files

    state = torch_files.read(options.source)
    devices = mesh.create_mesh()
    params = converter.from_torch(options.model, state, weights=options.weights, place=lambda leaf: mesh.place(leaf, devices))
    model = converter.model_for(options.model, converter.unwrap(state, options.weights))
    model_directory.save(options.to, model, params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{converter.name_of(model)}: {count:,} parameters in {options.to} (peak memory {_peak_memory():.1f} GiB)")
    return 0


def export(arguments: Sequence[str]) -> int:
    """Runs `jaxdrl export`.

    Args:
        arguments: After the command's name.

    Returns:
        0.

    Raises:
        UserError: If the folder holds no model, or the layout or suffix is unknown.
    """
    parser = _Parser(prog="jaxdrl export", add_help=False)
    parser.add_argument("--from", dest="source", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--layout", default="original")
    options = parser.parse_args(arguments)
    from jaxdrl.weights import convert as converter
    from jaxdrl.weights import model_directory, torch_files

    if options.to.suffix not in torch_files.SUFFIXES:
        raise UserError(f"--to: {options.to} must end in {', '.join(torch_files.SUFFIXES)}")
    model, params = model_directory.load(options.source)
    state: dict[str, Any]
    try:
        state = converter.to_torch(model, params, style=options.layout)
    except ValueError as error:
        raise UserError(f"--layout: {error}") from error
    torch_files.write(options.to, state)
    print(f"{converter.name_of(model)}: {len(state)} tensors in {options.to} (peak memory {_peak_memory():.1f} GiB)")
    return 0


def _peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
