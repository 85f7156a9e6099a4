"""The converged bases and encoders that ship in the package, each checked against its fingerprint.

They were made by the recipe of the same name: `jaxdrl run --config=configs/NAME.py --config.pretrain.from_scratch=true`.
"""

import json
from importlib import resources
from pathlib import Path

from jaxtyping import PyTree

from jaxdrl.errors import UserError
from jaxdrl.weights import files

_PARTS = ("reward", "judge", "state", "base")


def available(recipe: str) -> bool:
    """Says whether the package ships weights for a recipe.

    Args:
        recipe: `config.name`.

    Returns:
        True if all parts are there.
    """
    return all((_folder(recipe) / f"{part}.safetensors").is_file() for part in _PARTS)


def load(recipe: str, part: str) -> PyTree:
    """Loads one shipped part and checks its fingerprint.

    Args:
        recipe: `config.name`.
        part: "reward" or "judge" (encoder weights), "base" (the generator's weights) or "state" (the training
            state of its trunk, for continuing).

    Returns:
        A tree of arrays.

    Raises:
        UserError: If the package ships nothing for the recipe, or the file is not the one that was fingerprinted.
    """
    path = _folder(recipe) / f"{part}.safetensors"
    if not path.is_file():
        raise UserError(
            f"the package ships no {part!r} weights for config.name={recipe!r}; set --config.pretrain.from_scratch=true"
        )
    tree = files.load_tree(path)
    found, expected = files.fingerprint(tree), fingerprints(recipe)[part]
    if found != expected:
        raise UserError(f"{path} is damaged (fingerprint {found[:12]}, expected {expected[:12]}); reinstall the package")
    return tree


def fingerprints(recipe: str) -> dict[str, str]:
    """Returns the fingerprints of a recipe's shipped parts.

    Args:
        recipe: `config.name`.

    Returns:
        part -> sha256, empty when the package ships nothing for the recipe.
    """
    path = _folder(recipe) / "fingerprints.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def export(workdir: Path, recipe: str, directory: Path) -> dict[str, str]:
    """Copies the results of a from-scratch run to where the package looks for them.

    Args:
        workdir: A finished run with `config.pretrain.from_scratch=true`.
        recipe: Its `config.name`.
        directory: The assets folder, `jaxdrl/assets`.

    Returns:
        part -> fingerprint, as written to `fingerprints.json`.
    """
    target = directory / recipe
    target.mkdir(parents=True, exist_ok=True)
    sources = {
        "reward": workdir / "encoders" / "reward.safetensors",
        "judge": workdir / "encoders" / "judge.safetensors",
        "state": workdir / "pretrain" / "state.safetensors",
        "base": workdir / "pretrain" / "model.safetensors",
    }
    found = {}
    for part, source in sources.items():
        tree = files.load_tree(source)
        files.save_tree(target / f"{part}.safetensors", tree)
        found[part] = files.fingerprint(tree)
    (target / "fingerprints.json").write_text(json.dumps(found, indent=2) + "\n")
    return found


def _folder(recipe: str) -> Path:
    return Path(str(resources.files("jaxdrl"))) / "assets" / recipe
