"""Everything that turns algorithms into runs: state, checkpoints, metrics, meshes, stages."""
