"""Measuring generators: Frechet and kernel distances, manifold metrics, memorisation, the ideal tilt. Final algebra in float64."""
