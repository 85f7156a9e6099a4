"""Files of PyTorch weights: safetensors, read tensor by tensor without torch, and .pt, read without running what is in it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from jaxdrl.errors import UserError
from jaxdrl.weights.files import make_atomically

SUFFIXES = (".safetensors", ".pt", ".pth")


class LazyTensor:
    """A tensor of a safetensors file that is read when it becomes an array.

    Attributes:
        shape: Of the tensor.
    """

    def __init__(self, file: Any, name: str) -> None:
        """Reads the shape alone.

        Args:
            file: An open file.
            name: Of the tensor.
        """
        self._file, self._name = file, name
        self.shape: tuple[int, ...] = tuple(file.get_slice(name).get_shape())

    def __len__(self) -> int:
        """Length of the first axis."""
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Reads the tensor."""
        return np.array(self._file.get_tensor(self._name), dtype=dtype, copy=copy)


class Safetensors(Mapping[str, LazyTensor]):
    """A safetensors file as a mapping that knows shapes, and reads a tensor when it becomes an array."""

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Args:
            path: The file.
        """
        self._file = safetensors.safe_open(path, framework="numpy")
        self._tensors = {name: LazyTensor(self._file, name) for name in self._file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> LazyTensor:
        """The tensor, not read yet."""
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        """Goes through the names."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """How many tensors."""
        return len(self._tensors)


def read(path: Path) -> Mapping[str, Any]:
    """Opens a file of weights.

    Args:
        path: .safetensors, or .pt/.pth (which needs torch; only tensors and plain containers are accepted).

    Returns:
        names -> arrays, or a training script's checkpoint that contains such mappings.

    Raises:
        UserError: If the file is missing, has another suffix, cannot be read, or is a pickle that wants to run code.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"--from: {path} must end in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"--from: {path} is missing")
    if path.suffix == ".safetensors":
        try:
            return Safetensors(path)
        except Exception as error:
            raise UserError(f"--from: {path} cannot be read as safetensors ({error}); fetch it again") from error
    return _read_pickle(path)


def write(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict that the authors' code loads; the file appears whole or not at all.

    Args:
        path: .safetensors, or .pt/.pth (which needs torch).
        state: names -> float32 arrays.

    Raises:
        UserError: If the suffix is another one, or torch is missing.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"--to: {path} must end in {', '.join(SUFFIXES)}")
    if path.suffix == ".safetensors":
        tensors, metadata = dict(state), {"format": "pt"}
        make_atomically(path, lambda place: safetensors.numpy.save_file(tensors, place, metadata=metadata))
        return
    torch = _torch(path)
    content = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    make_atomically(path, lambda place: torch.save(content, place))


def _read_pickle(path: Path) -> Mapping[str, Any]:
    import argparse
    import pickle
    import warnings
    import zipfile

    torch = _torch(path)
    try:
        # The authors' scripts keep their arguments beside the weights; a Namespace holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of unusual pickle protocols, which are then refused or read
            # Files from before torch 1.6 are no zip archives and cannot be mapped into memory.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise UserError(f"--from: {path} is refused: it is a pickle that wants to run code ({reason[:200]})") from None
    except (RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"--from: {path} cannot be read ({str(error).splitlines()[0]}); fetch it again") from error
    return _arrays(content)


def _arrays(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(name): _arrays(value) for name, value in content.items()}
    if not hasattr(content, "detach"):
        return content
    content = content.detach()
    return (content.float() if content.is_floating_point() else content).numpy()


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path}: .pt files need torch (pip install -e '.[torch]'); safetensors files do not") from error
    return torch
