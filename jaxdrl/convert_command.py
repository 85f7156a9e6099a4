"""`jaxdrl convert` and `jaxdrl export`: the authors' PyTorch files in, and out again."""

import json
import resource
from collections import ChainMap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdrl.command_parser import CommandParser
from jaxdrl.errors import UserError

CONVERT_HELP = """usage: jaxdrl convert --model=NAME --from=FILE --to=DIR [--weights=ema|raw] [--set FIELD=VALUE ...]

  --model    a published name: SiT-XL/2, DiT-XL/2, REPA-SiT-XL/2, JiT-H/16, DiTDH-XL, sd-vae, dinov2-large, pickscore ... (`--model=list`
             prints all)
  --from     .safetensors, or .pt/.pth (needs torch; a pickle that wants to run code is refused); once for each file of the model. Reward
             models that read text also need their vocabulary: tokenizer.json, or vocab.json and merges.txt, or bpe_simple_vocab_16e6.txt.gz;
             BERT's is vocab.txt
  --to       a new folder: model.json and an Orbax checkpoint
  --weights  which weights of a training checkpoint: ema (default) or raw (default for reward models)
  --set      a field of the network that differs from the published one, for example --set num_classes=100; resolution, classes and
             learn_sigma are read from the weights where they tell

examples
  jaxdrl convert --model=SiT-XL/2 --from=SiT-XL-2-256x256.pt --to=models/sit-xl
  jaxdrl convert --model=sd-vae --from=diffusion_pytorch_model.safetensors --to=models/sd-vae
  jaxdrl convert --model=rae-dinov2-base --from=dinov2.safetensors --from=decoder.pt --from=stat.pt --to=models/rae
  jaxdrl convert --model=pickscore --from=model.safetensors --from=tokenizer.json --to=models/pickscore
  jaxdrl convert --model=imagereward --from=ImageReward.pt --from=vocab.txt --to=models/imagereward
  jaxdrl convert --model=hpsv2.1 --from=HPS_v2.1_compressed.pt --from=bpe_simple_vocab_16e6.txt.gz --to=models/hpsv2.1
  jaxdrl convert --model=aesthetic-v2.5 --from=model.safetensors --from=aesthetic_predictor_v2_5.pth --to=models/aesthetic
"""
EXPORT_HELP = """usage: jaxdrl export --from=DIR --to=FILE [--layout=original|diffusers|transformers|openclip] [--model=tuned|base|longer]

  --from     a folder that `jaxdrl convert` made, or the workdir of a run
  --model    of a workdir: tuned (default), base or longer
  --to       .safetensors, or .pt/.pth (needs torch); the authors' code loads it with strict=True
  --layout   original (default), or diffusers for DiT, or transformers or openclip for pickscore, hpsv2, hpsv2.1 and clipscore
"""


def convert(arguments: Sequence[str]) -> int:
    """Runs `jaxdrl convert`.

    Args:
        arguments: After the command's name.

    Returns:
        0.

    Raises:
        UserError: If a file is missing or does not fit the model, or the folder is not empty.
    """
    parser = CommandParser("convert")
    parser.add_argument("--model", required=True)
    parser.add_argument("--from", dest="source", type=Path, action="append", default=[])
    parser.add_argument("--to", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    options = parser.parse_args(arguments)
    from jaxdrl import backbones, encoders, tokenizers
    from jaxdrl.rewards import preference

    if options.model == "list":
        rooms = (backbones.PUBLISHED, tokenizers.PUBLISHED, encoders.PUBLISHED, encoders.PUBLISHED_TEXT, preference.PUBLISHED)
        print("\n".join(name for names in rooms for name in names))
        return 0
    if not options.source or options.to is None:
        raise UserError("--from and --to are needed; see `jaxdrl convert --help`")
    import jax

    from jaxdrl.training import mesh
    from jaxdrl.weights import convert as converter
    from jaxdrl.weights import model_directory, torch_files

    scores = options.model in preference.PUBLISHED
    others = [source for source in options.source if scores and source.suffix not in torch_files.SUFFIXES]
    vocabulary = preference.vocabulary(options.model, others) if scores else {}
    # Scorers are published without an average of their weights.
    weights = options.weights or ("raw" if scores else "ema")
    parts = [converter.unwrap(torch_files.read(source), weights) for source in options.source if source not in others]
    state, devices = ChainMap(*(dict(part) for part in parts)), mesh.create_mesh()
    model = converter.model_for(options.model, state, **dict(map(_field, options.set)))
    model_directory.check_new(options.to)
    params = converter.from_torch(model, state, place=lambda leaf: mesh.place(leaf, devices))
    model_directory.save(options.to, model, params, vocabulary)
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
    parser = CommandParser("export")
    parser.add_argument("--from", dest="source", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--layout", default="original")
    parser.add_argument("--model", default="tuned")
    options = parser.parse_args(arguments)
    from jaxdrl.weights import convert as converter
    from jaxdrl.weights import torch_files

    if options.to.suffix not in torch_files.SUFFIXES:
        raise UserError(f"--to: {options.to} must end in {', '.join(torch_files.SUFFIXES)}")
    model, params = _load(options.source, options.model)
    if getattr(model, "family", "") == "own":
        raise UserError(
            f"--from: {model.name} is a network of your own, and has no file of PyTorch's; the safetensors files of the workdir are it"
        )
    state: dict[str, Any]
    try:
        state = converter.to_torch(model, params, style=options.layout)
    except ValueError as error:
        raise UserError(f"--layout: {error}") from error
    torch_files.write(options.to, state)
    print(f"{converter.name_of(model)}: {len(state)} tensors in {options.to} (peak memory {_peak_memory():.1f} GiB)")
    return 0


def _field(text: str) -> tuple[str, Any]:
    """FIELD=VALUE, the value in JSON or a plain word."""
    name, found, value = text.partition("=")
    if not found:
        raise UserError(f"--set: {text!r} must be FIELD=VALUE, for example num_classes=100")
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        return name, value
    return name, tuple(parsed) if isinstance(parsed, list) else parsed


def _load(source: Path, which: str) -> tuple[Any, Any]:
    """The model of a folder from `jaxdrl convert`, or of a workdir."""
    from jaxdrl import stored_config
    from jaxdrl.training import loading, models
    from jaxdrl.weights import model_directory

    if not (source / "config.json").is_file():
        return model_directory.load(source)
    config = stored_config.get_config(str(source))
    return models.backbone(config), loading.load_model(config, source, which)


def _peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
