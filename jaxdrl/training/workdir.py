"""The folder of a run: whose it is, what is finished in it, and errors that say what to do."""

import contextlib
import errno
import fcntl
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from jaxdrl.errors import UserError
from jaxdrl.weights.files import write_atomically

_WIDEST = 100  # characters of a value in an error


def open_workdir(path: Path, config: Any) -> None:
    """Makes a workdir, or checks that it belongs to this config.

    Args:
        path: The folder.
        config: A `ConfigDict`; keys under `runtime`, `mesh` and `posttrain.host` may differ from those stored, except
            `posttrain.host.overlap`; so may the url of a remote reward, and how it is asked.

    Raises:
        UserError: If it holds a run of another config, or cannot be written.
    """
    if "://" in str(path) or re.match(r"\w+:/", str(path)):
        raise UserError(
            f"--workdir={path}: a workdir is a folder; checkpoints may be in a bucket: --config.runtime.checkpoints.directory=gs://BUCKET/NAME"
        )
    wanted = json.loads(config.to_json())
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        if (path / "config.json").exists():
            _check_same(path, read_config(path), wanted, "--workdir")
        write_atomically(path / "config.json", json.dumps(wanted, indent=2).encode())


def claim(directory: epath.Path, config: Any) -> None:
    """Keeps runs of other configs out of a place of checkpoints outside the workdir.

    Args:
        directory: Made if missing.
        config: As for `open_workdir`.

    Raises:
        UserError: If it holds checkpoints of another config, or cannot be written.
    """
    wanted, file = json.loads(config.to_json()), directory / "config.json"
    with disk_errors(Path(directory)):
        directory.mkdir(parents=True, exist_ok=True)
        if file.exists():
            _check_same(directory, json.loads(file.read_text()), wanted, "config.runtime.checkpoints.directory")
        file.write_text(json.dumps(wanted, indent=2))


def _check_same(path: Any, stored: dict[str, Any], wanted: dict[str, Any], key: str) -> None:
    differing = _differences(_flat(stored), _flat(wanted))
    if differing:
        raise UserError(f"{path} holds a run of another config ({differing}); choose another {key}")


def read_config(path: Path) -> dict[str, Any]:
    """Reads the stored config of a workdir.

    Args:
        path: The folder.

    Returns:
        The tree as plain dicts.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    file = path / "config.json"
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} holds no run (no config.json); give --config to start one") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is damaged ({error}); restore it or choose another --workdir") from None


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Keeps a second process out of a workdir; the lock dies with the process.

    Args:
        path: The folder.

    Yields:
        Nothing.

    Raises:
        UserError: If another process works in it.
    """
    with (path / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path} is in use by another process; wait for it or choose another --workdir") from None
        yield


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full or read-only disk into one clear line.

    Args:
        path: What is being written.

    Yields:
        Nothing.

    Raises:
        UserError: In place of ENOSPC, EDQUOT, EROFS and EACCES.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk of {path} is full; free space and run the same command again (nothing is lost)") from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EEXIST):
            raise UserError(f"{path} cannot be written ({error.strerror}); choose another --workdir") from error
        raise


def stage_result(path: Path, stage: str) -> dict[str, Any] | None:
    """Reads the result of a finished stage.

    Args:
        path: The workdir.
        stage: Its name.

    Returns:
        The result, or None if the stage is not finished.
    """
    file = path / stage / "result.json"
    return json.loads(file.read_text()) if file.exists() else None


def finish_stage(path: Path, stage: str, result: dict[str, Any]) -> None:
    """Marks a stage as finished.

    Args:
        path: The workdir.
        stage: Its name.
        result: What `stage_result` will return.
    """
    write_atomically(path / stage / "result.json", json.dumps(result, indent=2).encode())


def data_directory(run: Any) -> Path:
    """Where the data set of a run lives.

    Args:
        run: The `Run`.

    Returns:
        `config.data.directory`, or `<workdir>/data`.
    """
    return Path(run.config.data.directory).expanduser() if run.config.data.directory else run.workdir / "data"


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {name: leaf for key, part in tree.items() for name, leaf in _flat(part, f"{prefix}.{key}" if prefix else key).items()}


# How a run is carried out, how patient it is with what fails, and where a remote reward is. What overlaps changes the numbers.
_MAY_DIFFER = re.compile(
    r"runtime\.|mesh\.|posttrain\.host\.(?!overlap$)|posttrain\.rewards\.[^.]+\.(url|workers|batch_size|token_variable|timeout_seconds)$"
)


def _differences(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    names = [
        name
        for name in sorted(stored.keys() | wanted.keys())
        if not _MAY_DIFFER.match(name) and stored.get(name) != wanted.get(name)
    ]
    shown = [f"config.{name} is {_shown(stored.get(name))} there and {_shown(wanted.get(name))} here" for name in names[:3]]
    return "; ".join(shown) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")


def _shown(value: Any) -> str:
    """In one line: a hundred names of classes would make many."""
    text = repr(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 4]} ..."
