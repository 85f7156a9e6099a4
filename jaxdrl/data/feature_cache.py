"""Features of a data set, computed once and kept as ArrayRecord files with the specification that they were computed by.

A record is one example: its feature, and where training mirrors images that of the mirrored image too, float32. Files hold `SHARD` examples
each and appear whole or not at all, so that an interrupted computation goes on with the first missing file; `features.json`, written last,
says that all are there and by what they were made.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxdrl.data.images import to_float
from jaxdrl.data.sources import Source
from jaxdrl.errors import UserError
from jaxdrl.weights.files import make_atomically, write_atomically

SHARD = 4096
_DESCRIPTION = "features.json"


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """Random access to the features of a data set.

    Attributes:
        folder: Of the files.
        dim: Of a feature.
        examples: How many.
        mirrored: Whether features of mirrored images are there.
    """

    folder: Path
    dim: int
    examples: int
    mirrored: bool

    def read(self, index: Int[np.ndarray, " n"], turned: Bool[np.ndarray, " n"] | None = None) -> Float[np.ndarray, "n dim"]:
        """Reads features.

        Args:
            index: Numbers of examples.
            turned: Which of them are mirrored; None: none.

        Returns:
            float32 features, in the order of `index`.

        Raises:
            ValueError: If mirrored ones are asked for and not there.
        """
        from array_record.python.array_record_module import ArrayRecordReader

        turned = np.zeros(len(index), bool) if turned is None else turned
        if turned.any() and not self.mirrored:
            raise ValueError(f"{self.folder} has no features of mirrored images")
        found = np.empty((len(index), self.dim), np.float32)
        for shard in np.unique(index // SHARD):
            places = np.flatnonzero(index // SHARD == shard)
            reader = ArrayRecordReader(str(_shard(self.folder, int(shard))))
            records = reader.read([int(i) for i in index[places] % SHARD])
            reader.close()
            values = np.stack([np.frombuffer(record, np.float32) for record in records]).reshape(len(places), -1, self.dim)
            found[places] = values[np.arange(len(places)), turned[places].astype(int)]
        return found


def write(
    folder: Path,
    source: Source,
    features: Callable[[Float[np.ndarray, "n h w c"]], Float[np.ndarray, "n dim"]],
    description: dict[str, Any],
    *,
    mirrored: bool,
    batch_size: int = 256,
    progress: Callable[[int], None] = lambda done: None,
) -> FeatureCache:
    """Computes the features of every example, or of those that an interrupted call left.

    Args:
        folder: Of this cache alone.
        source: From `open_split`.
        features: Images in [-1, 1] -> features.
        description: What defines the features: the encoder's specification and how images were prepared.
        mirrored: Whether mirrored images are computed too.
        batch_size: Examples a call of `features`.
        progress: Called with the number of examples that are done.

    Returns:
        The cache.

    Raises:
        UserError: If the folder holds features of another description.
    """
    description = json.loads(json.dumps(description))
    if (folder / _DESCRIPTION).is_file():
        return open_cache(folder, description, mirrored=mirrored)
    dim = 0
    for shard in range(-(-len(source) // SHARD)):
        path, last = _shard(folder, shard), min((shard + 1) * SHARD, len(source))
        if not path.is_file():
            parts = [
                _of_batch(source, features, range(start, min(start + batch_size, last)), mirrored)
                for start in range(shard * SHARD, last, batch_size)
            ]
            make_atomically(path, partial(_write_records, values=np.concatenate(parts)))
        progress(last)
    dim = len(_first_record(folder)) // 4 // (2 if mirrored else 1)
    summary = {"description": description, "examples": len(source), "dim": dim, "mirrored": mirrored}
    write_atomically(folder / _DESCRIPTION, json.dumps(summary, indent=2).encode())
    return open_cache(folder, description, mirrored=mirrored)


def open_cache(folder: Path, description: dict[str, Any], *, mirrored: bool) -> FeatureCache:
    """Opens a finished cache.

    Args:
        folder: From `write`.
        description: What its features must have been made by.
        mirrored: Whether mirrored ones are needed.

    Returns:
        The cache.

    Raises:
        UserError: If there is none, or it was made otherwise; the error says what differs.
    """
    path = folder / _DESCRIPTION
    if not path.is_file():
        raise UserError(f"{folder} holds no finished feature cache")
    kept = json.loads(path.read_text())
    wanted = json.loads(json.dumps(description)) | {"mirrored": mirrored}
    found = kept["description"] | {"mirrored": kept["mirrored"]}
    different = [f"{key} ({found.get(key)} and {wanted.get(key)})" for key in found | wanted if found.get(key) != wanted.get(key)]
    if different:
        raise UserError(f"{folder} holds other features, they differ in {'; '.join(different)}; delete the folder")
    return FeatureCache(folder=folder, dim=kept["dim"], examples=kept["examples"], mirrored=kept["mirrored"])


def _shard(folder: Path, number: int) -> Path:
    return folder / f"features-{number:05d}.array_record"


def _of_batch(source: Source, features, numbers: range, mirrored: bool) -> np.ndarray:
    images = to_float(np.stack([source[number]["image"] for number in numbers]))
    found = [features(images)]
    if mirrored:
        found.append(features(np.ascontiguousarray(images[:, :, ::-1])))
    return np.stack(found, axis=1).astype(np.float32)


def _write_records(path: Path, values: np.ndarray) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for value in values:
        writer.write(value.tobytes())
    writer.close()


def _first_record(folder: Path) -> bytes:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(_shard(folder, 0)))
    record = reader.read([0])[0]
    reader.close()
    return record
