"""`jaxdrl plan`: whether a recipe fits a slice, and how long it takes there, before the slice is booked."""

import contextlib
import json
import os

from absl import flags

from jaxdrl.config import Config
from jaxdrl.errors import UserError

PLAN_HELP = """usage: jaxdrl plan --config=FILE[:VARIANT] --topology=CHIP:SIDES [--json] [--config.KEY=VALUE ...]

Compiles the train step of post-training for chips that need not be here, and prints weights and states, peak memory, operations, bytes and
collectives of a chip and a refresh, and the roofline's hours of the recipe. Needs no weights, data or workdir. docs/scale.md says how
the numbers come about, and what is not in them.

  --topology  v5e:4x4, v5e:16x16, v5p:2x4x4, v6e:8x8 ... compiled by the TPU compiler (pip install 'jaxdrl[plan]'; no TPU is needed);
              h200:8, h100:8, a100:8 ... estimated from the program that XLA makes for as many simulated CPU devices
  --json      everything as one JSON object, in place of the text

The mesh is config.mesh's. The last line is the verdict. Exit code 0: it fits; 1: it does not, and the last line says what to set; 2: a mistake.

examples
  jaxdrl plan --config=configs/drl_imagenet_sit_xl.py --topology=v5e:4x4 --config.mesh.fsdp=16
  jaxdrl plan --config=configs/drl_imagenet_sit_xl.py --topology=h200:8 --config.mesh.fsdp=8 --json
"""


def define_flags(values: flags.FlagValues) -> None:
    """The command's own flags.

    Args:
        values: Where they are defined.
    """
    flags.DEFINE_string("topology", None, "CHIP:SIDES.", flag_values=values)
    flags.DEFINE_boolean("json", False, "For machines.", flag_values=values)


def run(values: flags.FlagValues, config: Config) -> int:
    """Runs the command.

    Args:
        values: Parsed flags.
        config: The recipe.

    Returns:
        0 if the recipe fits, 1 if not.

    Raises:
        UserError: If the topology is unknown, the TPU compiler is missing, or the config cannot be planned.
    """
    from jaxdrl.planning import chips

    if not values.topology:
        raise UserError("--topology is missing; for example --topology=v5e:4x4 (see `jaxdrl plan --help`)")
    where = chips.parse(values.topology)
    _on_cpu(where.count)
    from jaxdrl import data
    from jaxdrl.planning import advice, estimate, page, programs
    from jaxdrl.training import mesh

    data.class_names(config.data)  # refuses a number of classes that the run would refuse
    config = programs.sizes_only(config)
    devices = programs.devices_of(where)
    laid_out = mesh.create_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
    found = estimate.plan(config, where, laid_out)
    verdict = advice.verdict(config, found)
    if values.json:
        more = {"verdict": verdict, "set": advice.advise(config, found), "warnings": advice.warnings(config, found)}
        print(json.dumps(found.to_dict() | more | {"versions": estimate.versions()}, indent=2))
    else:
        print(page.text(found, where, advice.warnings(config, found)) + f"\n\n{verdict}")
    return 0 if found.fits else 1


def _on_cpu(count: int) -> None:
    """A plan takes no accelerator that is here from whoever uses it; GPUs are simulated by as many CPU devices."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    jax.config.update("jax_platforms", "cpu")
    # Too late where JAX is in use already; `devices_of` says so if that matters.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
