"""Reference statistics that papers publish: mean and covariance of a data set's features, under everybody's own names.

| file | names |
|---|---|
| ADM `VIRTUAL_imagenet256_labeled.npz` | mu, sigma; mu_s, sigma_s for sFID; arr_0 holds 10 000 images |
| JiT `jit_in256_stats.npz`, EDM, torch-fidelity | mu, sigma |
| MeanFlow, iMF | ref_mu, ref_sigma |
| EDM2 `.pkl` | {"fid": {"mu", "sigma"}, "fd_dinov2": {...}} |

A pickle runs code when it is read, so only the classes that NumPy arrays need are let through. FID against ADM's and against JiT's statistics
are different numbers: the reference's name belongs to the result.
"""

import io
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxdrl.errors import UserError

_NAMES = {"fid": (("mu", "sigma"), ("ref_mu", "ref_sigma")), "sfid": (("mu_s", "sigma_s"),)}
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
}


@dataclass(frozen=True, kw_only=True)
class ReferenceStatistics:
    """Mean and covariance of a data set in one feature space.

    Attributes:
        mean: float64.
        covariance: float64.
        source: The file's name and where in it, for the report.
    """

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]
    source: str


def load(path: Path, metric: str = "fid") -> ReferenceStatistics:
    """Reads the statistics for a metric.

    Args:
        path: `.npz` or `.pkl`.
        metric: "fid", "sfid", or a name in an EDM2 file such as "fd_dinov2".

    Returns:
        The statistics.

    Raises:
        UserError: If the file is missing or damaged, is a pickle that wants to run code, or has nothing for the metric.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing")
    if path.suffix == ".pkl":
        content = _unpickled(path)
        part = content.get(metric) if isinstance(content, Mapping) else None
        if not isinstance(part, Mapping) or not {"mu", "sigma"} <= part.keys():
            known = ", ".join(str(key) for key in content) if isinstance(content, Mapping) else "none"
            raise UserError(f"{path} has no statistics for {metric!r}; it has {known}")
        return _checked(path, metric, part["mu"], part["sigma"])
    try:
        with np.load(path, allow_pickle=False) as file:
            for mean, covariance in _NAMES.get(metric, ()):
                if mean in file.files and covariance in file.files:
                    return _checked(path, mean, file[mean], file[covariance])
            raise UserError(f"{path} has no statistics for {metric!r}; it has {', '.join(file.files)}")
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}); is it whole?") from error


def _checked(path: Path, name: str, mean: Any, covariance: Any) -> ReferenceStatistics:
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(f"{path}: {name} has shape {mean.shape}, its covariance {covariance.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: {name} or its covariance is not finite")
    return ReferenceStatistics(mean=mean, covariance=covariance, source=f"{path.name}:{name}")


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Lets NumPy's arrays through and nothing else."""
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def _unpickled(path: Path) -> Any:
    try:
        return _ArraysOnly(io.BytesIO(path.read_bytes())).load()
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: it is damaged, or a pickle that wants to run code ({error})") from error
    except (EOFError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{path} cannot be read ({error}); is it whole?") from error
