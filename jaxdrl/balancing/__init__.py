"""How the gradients of several rewards become one update. Knows nothing of what the rewards mean, of networks or of meshes."""
