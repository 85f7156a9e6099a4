"""One file a paper: each opens with its equations and has a `loss`, and a `collect` where it learns from its own samples."""
