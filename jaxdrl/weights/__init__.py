"""Weights in files: safetensors trees with fingerprints, the bases that ship in the package, and PyTorch's files both ways."""

from jaxdrl.weights.convert import from_torch, to_torch

__all__ = ["from_torch", "to_torch"]
