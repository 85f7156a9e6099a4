"""The control beside stage 5: pretraining continued for the operations that DRL took. See `stages/pretrain.py`."""

from jaxdrl.training.context import Run
from jaxdrl.training.stages import pretrain

name = "longer"


def run(run: Run) -> dict:
    """Continues the base's training at equal compute; writes `longer/model.safetensors`.

    Args:
        run: The run.

    Returns:
        See `pretrain.run_longer`.
    """
    return pretrain.run_longer(run)
