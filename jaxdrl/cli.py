"""The command line: `jaxdrl run|pretrain|discriminator|posttrain|evaluate|report|compare|sweep|plan|sample|convert|export`.

Mistakes of the user are one line on stderr and exit code 2; nothing that was computed is lost by any of them.
"""

import contextlib
import difflib
import errno
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

import jaxdrl
from jaxdrl import compare_command, convert_command, measure_command, plan_command, sweep_command
from jaxdrl.config import Config, default
from jaxdrl.errors import Lost, Stopped, UserError

HELP = """jaxdrl {version}: Discriminator-Guided RL for flow-matching image generators.

usage: jaxdrl COMMAND --workdir=DIR [--config=FILE[:VARIANT]] [--config.KEY=VALUE ...]

commands
  run            every stage in order: data, encoders, pretrain, discriminator, posttrain, longer, evaluate, report
  pretrain       the stages up to and including the generator's training
  discriminator  ... up to and including the reward
  posttrain      ... up to and including Adjoint Matching
  evaluate       ... up to and including the measurement; or measures any images (see `jaxdrl evaluate --help`)
  report         ... up to and including the report (as run)
  compare        several runs on one page: lambda sweeps, seeds, settings (see `jaxdrl compare --help`)
  sweep          the best guidance: scale x interval, measured, drawn (see `jaxdrl sweep --help`)
  plan           whether a recipe fits TPUs or GPUs that are not here, and its hours (see `jaxdrl plan --help`)
  sample         images from a model of a workdir (see `jaxdrl sample --help`)
  convert        the authors' PyTorch weights into a folder of ours (see `jaxdrl convert --help`)
  export         ... and back into a file that their code loads (see `jaxdrl export --help`)

A stage whose result is in the workdir is skipped, one that was cut short goes on where it stopped: give the same command again.
--config may be left out when the workdir has a run. Every key of the config can be set: jaxdrl/config.py explains them.

examples
  jaxdrl run --config=configs/drl_digits.py --workdir=runs/first
  jaxdrl run --config=configs/drl_digits.py --workdir=runs/seed1 --config.seed=1 --config.pretrain.from_scratch=true
  jaxdrl run --config=configs/drl_digits.py:tiny --workdir=runs/tiny
  jaxdrl posttrain --config=configs/drl_patches.py --workdir=runs/lambda3 --config.posttrain.reward_scale=3.0
  jaxdrl sample --workdir=runs/first --model=tuned --num=1000 --seed=0 --out=tuned.npz
"""

SAMPLE_HELP = """usage: jaxdrl sample --workdir=DIR --out=FILE.npz|FILE.png [options]

  --model     base, tuned or longer (the continued-pretraining control); default tuned
  --num       how many images; default 100. Classes are balanced: image i has class i modulo the number of classes
  --seed      of the noise; the same seed gives every model the same noise; default 0
  --steps     of the Heun sampler; default config.evaluate.sampling_steps
  --guidance  scale of classifier-free guidance; default 1 (none)
  --interval  LOW,HIGH: times at which guidance acts (0 is noise, 1 is data); default 0,1

.npz has `arr_0` (uint8, [num, height, width, channels], as ADM's evaluator reads it) and `labels`; .png is a grid, a row a class.

example
  jaxdrl sample --workdir=runs/first --model=base --num=80 --seed=3 --out=base.png
"""

COMMANDS = (
    "run",
    "pretrain",
    "discriminator",
    "posttrain",
    "evaluate",
    "report",
    "compare",
    "sweep",
    "plan",
    "sample",
    "convert",
    "export",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: Arguments without the program's name; by default the process's.

    Returns:
        0; 2 after a mistake of the user; 75 where the same command is to be given again (after SIGTERM); 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(argv)
    except UserError as error:
        line = " ".join(str(error).split())
        print(f"jaxdrl: error: {line}", file=sys.stderr)
        return _leave(2)
    except Stopped as stopped:
        print(f"jaxdrl: stopped: {stopped}; the same command goes on from there (exit code 75)", file=sys.stderr)
        return _leave(75) if isinstance(stopped, Lost) else 75
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print("jaxdrl: error: the disk is full; free space and run the same command again (nothing is lost)", file=sys.stderr)
        return _leave(2)
    except KeyboardInterrupt:
        print("\njaxdrl: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def _leave(code: int) -> int:
    """Ends one of several processes; a run of one process just gets its exit code."""
    if "jax" in sys.modules:
        from jaxdrl.training import distributed

        distributed.leave(code)
    return code


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP.format(version=jaxdrl.__version__), end="")
        return 0
    if argv[0] == "--version":
        print(jaxdrl.__version__)
        return 0
    command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        raise UserError(f"command {command!r} is unknown{_closest(command, COMMANDS)}; see `jaxdrl --help`")
    if any(argument in ("-h", "--help") for argument in rest):
        pages = {
            "sample": SAMPLE_HELP,
            "convert": convert_command.CONVERT_HELP,
            "export": convert_command.EXPORT_HELP,
            "compare": compare_command.COMPARE_HELP,
            "evaluate": measure_command.EVALUATE_HELP,
            "sweep": sweep_command.SWEEP_HELP,
            "plan": plan_command.PLAN_HELP,
        }
        print(pages.get(command, HELP.format(version=jaxdrl.__version__)), end="")
        return 0
    if command == "compare":
        return compare_command.run(rest)
    if command in ("convert", "export"):
        return (convert_command.convert if command == "convert" else convert_command.export)(rest)
    values = _parse(command, rest)
    measures = command == "evaluate" and measure_command.wanted(values)
    if measures and values.samples:
        _start(values.config)
        return measure_command.run(values, values.config)
    if command == "plan":
        if "config" not in values:
            raise UserError(
                "--config is missing; for example `jaxdrl plan --config=configs/drl_imagenet_sit_xl.py --topology=v5e:4x4`"
            )
        return plan_command.run(values, values.config)
    if values.workdir is None:
        raise UserError(f"--workdir is missing; for example `jaxdrl {command} --workdir=runs/first`")
    signal.signal(signal.SIGTERM, _terminate)
    config = values.config
    own = {"sample": _sample, "sweep": sweep_command.run} | ({"evaluate": measure_command.run} if measures else {})
    if command in own:
        _start(config)
        return own[command](values, config)
    return _run(command, values, config)


def _parse(command: str, arguments: list[str]) -> flags.FlagValues:
    """Reads the flags into a fresh `FlagValues`, so that nothing is global."""
    values, arguments = flags.FlagValues(), _joined(arguments)
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    if command == "sample":
        flags.DEFINE_string("model", "tuned", "base, tuned or longer.", flag_values=values)
        flags.DEFINE_integer("num", 100, "How many images.", lower_bound=1, flag_values=values)
        flags.DEFINE_integer("seed", 0, "Of the noise.", lower_bound=0, flag_values=values)
        flags.DEFINE_integer("steps", None, "Of the sampler.", lower_bound=1, flag_values=values)
        flags.DEFINE_float("guidance", 1.0, "Scale.", flag_values=values)
        flags.DEFINE_list("interval", ["0", "1"], "Times.", flag_values=values)
        flags.DEFINE_string("out", None, "File.", flag_values=values)
    if command == "evaluate":
        measure_command.define_flags(values)
    if command == "plan":
        plan_command.define_flags(values)
    if command == "sweep":
        sweep_command.define_flags(values)
    recipe, rest = _recipe(arguments)
    try:
        if recipe is None and command == "evaluate":
            config_flags.DEFINE_config_dict("config", default(), flag_values=values, sys_argv=["jaxdrl", *rest])
        if recipe is not None:
            config_flags.DEFINE_config_dict("config", _load(recipe), flag_values=values, sys_argv=["jaxdrl", *rest])
        left = values(["jaxdrl", *rest])
    except flags.UnrecognizedFlagError as error:
        known = ["config", *values, *(f"config.{key}" for key in _keys(default().to_dict()))]
        raise UserError(f"--{error.flagname} is unknown{_closest(error.flagname, known)}") from None
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(_explain(error, arguments)) from None
    if len(left) > 1:
        raise UserError(f"{left[1]!r} is not understood; options are written --name=value")
    return values


def _joined(arguments: list[str]) -> list[str]:
    """`--workdir DIR` as `--workdir=DIR`: these two are read before the flags are."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in ("--workdir", "--config"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _recipe(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Finds FILE[:VARIANT] of --config, or the config that the workdir was started with; and the other arguments."""
    given = [argument for argument in arguments if argument == "--config" or argument.startswith("--config=")]
    rest = [argument for argument in arguments if argument not in given]
    if given:
        if len(given) > 1 or "=" not in given[0]:
            raise UserError("--config must be given once, as --config=FILE[:VARIANT]")
        return given[0].split("=", 1)[1], rest
    workdir = next((argument.split("=", 1)[1] for argument in arguments if argument.startswith("--workdir=")), None)
    if workdir is None:
        return None, rest
    if not (Path(workdir) / "config.json").exists():
        raise UserError(f"{workdir} holds no run (no config.json); give --config to start one")
    return f"{Path(__file__).parent / 'stored_config.py'}:{Path(workdir).absolute()}", rest


def _load(recipe: str) -> ConfigDict:
    """Calls `get_config(variant)` of a recipe's file."""
    name, _, variant = recipe.partition(":")
    spec = importlib.util.spec_from_file_location("recipe", name)
    if spec is None or spec.loader is None or not Path(name).is_file():
        raise UserError(f"--config: {name} does not exist or is no Python file; configs/ has the recipes")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"--config: {name} has no function get_config(variant)")
        config = module.get_config(variant)
    except (SyntaxError, ImportError, NameError, AttributeError, KeyError, TypeError) as error:
        said = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
        raise UserError(f"--config: {name} cannot be loaded ({type(error).__name__}: {said})") from None
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config: get_config in {name} must return an ml_collections.ConfigDict")
    return config


def _explain(error: Exception, arguments: list[str]) -> str:
    """One line about a config that could not be read or overridden."""
    text = " ".join(str(error).split())
    for argument in arguments:
        match = re.match(r"--config\.([\w.]+)", argument)
        if match and (match.group(1).split(".")[-1] in text or match.group(1) in text):
            known = [f"config.{key}" for key in _keys(default().to_dict())]
            name = f"config.{match.group(1)}"
            if name not in known:
                return f"--{name} is unknown{_closest(name, known)}; jaxdrl/config.py lists every key"
            return f"{argument}: the value does not fit the key ({text.split('; ')[0]})"
    return text if text.startswith("flag ") else f"--config: {text}"


def _keys(tree: dict, prefix: str = "") -> list[str]:
    names = []
    for key, value in tree.items():
        names += _keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return names


def _closest(word: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {found[0]}?)" if found else ""


def _terminate(number: int, frame: object) -> None:
    del number, frame
    print("jaxdrl: terminated; the same command goes on from the last checkpoint", file=sys.stderr)
    raise SystemExit(143)


def _start(config: Config) -> None:
    """Chooses the compilation cache before anything is compiled."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    folder = config.runtime.compilation_cache
    if folder and not jax.config.jax_compilation_cache_dir:
        # A bucket's name is no path: it would lose a slash.
        jax.config.update("jax_compilation_cache_dir", folder if "://" in folder else str(Path(folder).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _run(command: str, values: flags.FlagValues, config: Config) -> int:
    _start(config)
    import jax

    from jaxdrl.report import table
    from jaxdrl.training import distributed, mesh
    from jaxdrl.training.context import Run
    from jaxdrl.training.heartbeat import Heartbeat
    from jaxdrl.training.loop import run_stages
    from jaxdrl.training.metrics import MetricWriter
    from jaxdrl.training.stages import ORDER
    from jaxdrl.training.stopping import Stopping
    from jaxdrl.training.telemetry import ProfileWindow

    distributed.initialise(config.runtime)
    path = Path(values.workdir)
    with contextlib.ExitStack() as held:
        if not distributed.first():
            held.enter_context(contextlib.redirect_stdout(held.enter_context(open(os.devnull, "w"))))
        distributed.on_first(lambda: _open(path, config, held))
        distributed.check_shared(path)
        last = ORDER[-1] if command == "run" else command
        devices = mesh.create_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
        profile = ProfileWindow(path, config.runtime.profile)
        shown = {"tensorboard": config.runtime.tensorboard, "wandb": config.runtime.wandb, "config": config.to_dict()}
        writer, stopping, heartbeat = MetricWriter(path, writes=distributed.first(), **shown), Stopping(), Heartbeat()
        run = Run(
            config=config.lock(),
            workdir=path,
            mesh=devices,
            writer=writer,
            stopping=stopping,
            heartbeat=heartbeat,
            profile=profile,
        )
        number, count, patience = jax.process_index(), jax.process_count(), config.runtime.heartbeat_seconds
        try:
            with stopping.listening(), heartbeat.beating(path, patience, number, count), distributed.lost_contact():
                results = run_stages(run, ORDER[: ORDER.index(last) + 1])
        finally:
            profile.close()
            writer.close()
        if "evaluate" in results:
            print("\n" + table.plain(results["evaluate"]))
        if "report" in results:
            print(f"\nreport: {path / 'report.html'}")
    return 0


def _open(path: Path, config: Config, held: contextlib.ExitStack) -> None:
    """Makes or checks the workdir and the place of the checkpoints, and keeps others out."""
    from jaxdrl.training import checkpoints, workdir

    workdir.open_workdir(path, config)
    held.enter_context(workdir.lock(path))
    if config.runtime.checkpoints.directory:
        workdir.claim(checkpoints.place(config.runtime.checkpoints.directory), config)


def _sample(values: flags.FlagValues, config: Config) -> int:
    from jaxdrl import samples_file

    if values.out is None or Path(values.out).suffix not in (".npz", ".png"):
        raise UserError(f"--out must name a .npz or .png file, got {values.out!r}")
    try:
        low, high = (float(part) for part in values.interval)
    except ValueError:
        raise UserError(f"--interval must be LOW,HIGH, got {','.join(values.interval)!r}") from None
    samples_file.write(
        config,
        Path(values.workdir),
        Path(values.out),
        model=values.model,
        num=values.num,
        seed=values.seed,
        num_steps=values.steps or config.evaluate.sampling_steps,
        guidance=(values.guidance, (low, high)),
    )
    print(f"{values.num} images of the {values.model} model: {values.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
