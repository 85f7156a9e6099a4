"""Weights in files: safetensors trees with fingerprints, and the bases that ship in the package."""
