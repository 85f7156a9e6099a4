"""jaxdrl: post-training of flow-matching image generators in JAX.

A generator is corrected by reinforcement learning on its own samples; the reward is the logit of a discriminator between data and
samples, on the frozen features of a pretrained encoder (Discriminator-Guided RL, arXiv 2606.19162).
"""

__version__ = "0.1.0"
