"""Pytrees of arrays in safetensors files: written whole or not at all, read back by name, fingerprinted.

A leaf's name is its key path joined with "/". Typed PRNG keys are not stored; convert them first.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
from jaxtyping import PyTree

from jaxdrl.errors import UserError


def named_leaves(tree: PyTree) -> dict[str, np.ndarray]:
    """Flattens a tree to names and host arrays, in the tree's order.

    Args:
        tree: Arrays in dicts, lists, tuples or dataclasses.

    Returns:
        "a/b/0" -> array.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(_part(key) for key in path): np.asarray(leaf, order="C") for path, leaf in leaves}


def save_tree(path: Path, tree: PyTree, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a tree; the file appears whole or not at all.

    Args:
        path: Target, `.safetensors`.
        tree: Arrays.
        metadata: Strings kept in the file's header.
    """
    arrays = {name: leaf.reshape(1) if leaf.ndim == 0 else leaf for name, leaf in named_leaves(tree).items()}
    scalars = [name for name, leaf in named_leaves(tree).items() if leaf.ndim == 0]
    header = {"scalars": json.dumps(scalars), **(metadata or {})}
    write_atomically(path, safetensors.numpy.save(arrays, metadata=header))


def load_tree(path: Path, template: PyTree | None = None) -> PyTree:
    """Reads a tree.

    Args:
        path: A file from `save_tree`.
        template: Gives structure, shapes and dtypes. Without one the result is a dict of dicts by name.

    Returns:
        The tree, NumPy leaves.

    Raises:
        UserError: If the file is missing or unreadable, or its leaves do not fit the template (all are listed).
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            scalars = set(json.loads((file.metadata() or {}).get("scalars", "[]")))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except Exception as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}); delete it and run the stage again") from error
    arrays = {name: leaf.reshape(()) if name in scalars else leaf for name, leaf in arrays.items()}
    nested = _nest(arrays)
    return nested if template is None else match(template, nested, str(path))


def match(template: PyTree, tree: PyTree, origin: str) -> PyTree:
    """Puts the leaves of a tree of names into the structure of a template.

    Args:
        template: Gives structure, shapes and dtypes (arrays or `ShapeDtypeStruct`s).
        tree: Any tree with the same names.
        origin: Said in the error.

    Returns:
        The template's structure with the tree's leaves.

    Raises:
        UserError: Naming every missing, unexpected and misshapen leaf.
    """
    found = named_leaves(tree)
    wanted, structure = jax.tree_util.tree_flatten_with_path(template)
    names = ["/".join(_part(key) for key in path) for path, _ in wanted]
    missing = [name for name in names if name not in found]
    unexpected = sorted(set(found) - set(names))
    misshapen = [
        f"{name} (is {found[name].shape} {found[name].dtype}, must be {tuple(leaf.shape)} {leaf.dtype})"
        for name, (_, leaf) in zip(names, wanted, strict=True)
        if name in found and (found[name].shape != tuple(leaf.shape) or found[name].dtype != leaf.dtype)
    ]
    problems = [("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)]
    if any(items for _, items in problems):
        text = "; ".join(f"{what}: {', '.join(items)}" for what, items in problems if items)
        raise UserError(f"{origin} does not fit the configured network; {text}")
    return jax.tree_util.tree_unflatten(structure, [found[name] for name in names])


def fingerprint(tree: PyTree) -> str:
    """Hashes names, shapes, dtypes and bytes of a tree.

    Args:
        tree: Arrays.

    Returns:
        sha256, hexadecimal; independent of the order of the leaves and of the container types.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(named_leaves(tree).items()):
        digest.update(f"{name}|{leaf.shape}|{leaf.dtype}|".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file beside its target, syncs it and renames it over the target.

    Args:
        path: Target; its folder is made.
        content: The bytes.
    """
    make_atomically(path, lambda temporary: temporary.write_bytes(content))


def make_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """As `write_atomically`, for content that somebody else writes.

    Args:
        path: Target; its folder is made.
        write: Called with a path beside the target.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.touch()
    mode = temporary.stat().st_mode
    write(temporary)
    temporary.chmod(mode)  # some writers make files that nobody else can read
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def _part(key) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _nest(arrays: dict[str, np.ndarray]) -> dict:
    nested: dict = {}
    for name, leaf in arrays.items():
        *folders, last = name.split("/")
        level = nested
        for folder in folders:
            level = level.setdefault(folder, {})
        level[last] = leaf
    return nested
