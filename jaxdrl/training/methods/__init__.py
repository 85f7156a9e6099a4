"""Methods of the posttrain stage, by `config.posttrain.algorithm`.

Each is a module with `settings_from(config)`, `initial_state(config, base)`, `compile_step(config, settings, mesh)`,
`trained(config, state)`, `weights(config, trained, frozen)` and `gradient_steps(state)`; a state has the counter `refresh`.
"""

from typing import Any

from jaxdrl.config import Config
from jaxdrl.errors import UserError
from jaxdrl.training.methods import adjoint, policy

METHODS: dict[str, Any] = {"adjoint_matching": adjoint, "nft": policy, "flow_grpo": policy}


def of(config: Config) -> Any:
    """The method that a config names.

    Args:
        config: A run's config.

    Returns:
        A module.

    Raises:
        UserError: If it is unknown.
    """
    name = config.posttrain.algorithm
    if name not in METHODS:
        raise UserError(f"config.posttrain.algorithm: {name!r} is unknown; choose one of {', '.join(METHODS)}")
    return METHODS[name]
