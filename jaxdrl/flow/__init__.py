"""The mathematics of flow matching: paths, ODE samplers, guidance and the memoryless SDE. Knows nothing of networks."""
