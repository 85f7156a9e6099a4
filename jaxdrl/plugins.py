"""What a user wrote, by its import path "module:function": a reward, a network, a recogniser, a detector."""

import importlib
from collections.abc import Callable
from typing import Any

from jaxdrl.errors import UserError


def load(path: str, field: str = "path") -> Callable[..., Any]:
    """Imports a function.

    Args:
        path: "module:function"; the module is found as by `import`, so that its folder has to be on PYTHONPATH or installed.
        field: The field that holds the path, in errors.

    Returns:
        The function.

    Raises:
        UserError: If the path has another form, the module cannot be imported, or it has no such function.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise UserError(f"{field}: {path!r} must be module:function, like my_rewards:redness")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # whatever a module does when it is imported
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{field}: {module} cannot be imported ({why}); is its folder on PYTHONPATH?") from error
    if not callable(found):
        raise UserError(f"{field}: {module} has no function {name}")
    return found
