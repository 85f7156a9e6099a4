"""Reference statistics that papers publish: mean and covariance of a data set's features, under everybody's own names.

| file | names |
|---|---|
| ADM `VIRTUAL_imagenet256_labeled.npz` | mu, sigma; mu_s, sigma_s for sFID; arr_0 holds 10 000 images |
| JiT `jit_in256_stats.npz`, EDM, torch-fidelity | mu, sigma |
| MeanFlow, iMF | ref_mu, ref_sigma |
| EDM2 `.pkl` | {"fid": {"mu", "sigma"}, "fd_dinov2": {...}} |
| ours | as ADM for the Inception spaces, SPACE/mu and SPACE/sigma for all others; `specs`: a feature specification each, in JSON; `count`; `images`: how they were made |

Ours are refused where the specification differs from what is measured. The others say nothing of how they were made. A pickle runs code when it is read, so only the classes that NumPy arrays need are let through. FID against ADM's and against JiT's statistics
are different numbers: the reference's name belongs to the result.
"""

import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxdrl.encoders.spec import FeatureSpec
from jaxdrl.errors import UserError
from jaxdrl.evaluation.statistics import Moments
from jaxdrl.weights.files import make_atomically

# The smallest count that gives a covariance back: for statistics that do not say of how many images they are.
UNKNOWN_COUNT = 2

_METRIC_OF = {
    "inception": "fid",
    "inception-pytorch-fid": "fid",
    "inception-clean-fid": "fid",
    "inception-spatial": "sfid",
    "dinov2": "fd_dinov2",
}
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


def save(
    path: Path,
    moments: Mapping[str, Moments],
    specs: Mapping[str, FeatureSpec],
    count: int,
    images: Mapping[str, Any] | None = None,
) -> None:
    """Writes our file, whose Inception statistics other programs find under ADM's names.

    Args:
        path: `.npz`.
        moments: Space -> statistics.
        specs: Space -> specification.
        count: Of the images.
        images: How they were made: source, to_uint8, labels ...
    """
    arrays: dict[str, Any] = {
        "count": count,
        "images": json.dumps(dict(images or {})),
        "specs": json.dumps({name: specs[name].to_dict() for name in moments}),
    }
    for name, found in moments.items():
        mean, covariance = _our_names(name)
        arrays |= {mean: found.mean, covariance: found.covariance}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    make_atomically(path, write)


def load_space(path: Path, space: str, spec: FeatureSpec) -> Moments | None:
    """Reads the statistics of a space from our file or from anybody's.

    Args:
        path: `.npz` or `.pkl`.
        space: See `spaces.py`.
        spec: Of the features that they will be compared with.

    Returns:
        The statistics, or None if the file has none of this space.

    Raises:
        UserError: If the file is missing or damaged, or the specification in it differs; the error names the fields.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing")
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as file:
                names = set(file.files)
                if "specs" in names:
                    return _ours(path, file, space, spec)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} cannot be read ({error}); is it whole?") from error
        metric = _METRIC_OF.get(space)
        if metric is None or not any(set(pair) <= names for pair in _NAMES.get(metric, ())):
            return None
    elif space not in _METRIC_OF:
        return None
    found = load(path, _METRIC_OF[space])
    if len(found.mean) != _DIMS.get(space, len(found.mean)):
        raise UserError(f"{path}: statistics of {len(found.mean)} dimensions, {space} has {_DIMS[space]}")
    return Moments.from_covariance(UNKNOWN_COUNT, found.mean, found.covariance)


def images_of(path: Path) -> dict[str, Any] | None:
    """What our file says of its images.

    Args:
        path: A file.

    Returns:
        The description with "num"; None for other people's files, which say nothing.
    """
    if path.suffix != ".npz":
        return None
    with np.load(path, allow_pickle=False) as file:
        if "specs" not in file.files:
            return None
        said = json.loads(str(file["images"])) if "images" in file.files else {}
        return said | {"num": int(file["count"])}


def require_comparable(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: Path) -> None:
    """Refuses to compare two sets of generated images that became bytes, or got their labels, by different rules.

    Args:
        ours: Description of the samples.
        theirs: That of the file's images.
        path: The file.

    Raises:
        UserError: Naming the rules; images that were stored as bytes compare with any.
    """
    given = ("stored", "unknown", "of the data", "of the file")
    pairs = [(key, ours.get(key), theirs.get(key)) for key in ("to_uint8", "labels")]
    different = [f"{key} ({a} and {b})" for key, a, b in pairs if a and b and a != b and a not in given and b not in given]
    if different:
        raise UserError(f"{path}: these images cannot be compared, they differ in {'; '.join(different)}")


_DIMS = {"inception": 2048, "inception-pytorch-fid": 2048, "inception-clean-fid": 2048, "inception-spatial": 2023}


def _our_names(space: str) -> tuple[str, str]:
    return {"inception": ("mu", "sigma"), "inception-spatial": ("mu_s", "sigma_s")}.get(space, (f"{space}/mu", f"{space}/sigma"))


def _ours(path: Path, file: Any, space: str, spec: FeatureSpec) -> Moments | None:
    specs = json.loads(str(file["specs"]))
    if space not in specs:
        return None
    try:
        FeatureSpec.from_dict(specs[space]).require_same(spec)
    except UserError as error:
        raise UserError(f"{path}, {space}: {error}") from error
    mean, covariance = _our_names(space)
    found = _checked(path, mean, file[mean], file[covariance])
    return Moments.from_covariance(int(file["count"]), found.mean, found.covariance)


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
