r"""From images to sufficient statistics and features: on all devices, in parts that can be interrupted, over any number of hosts.

A batch lies over the local devices (`batch_size` images on each, so that a device's program, and with it every bit of a feature, does not
depend on how many there are); the last one is padded and the padding's features are dropped. Features come to the host, where count, mean
and scatter are merged in float64 (Chan, see `statistics.py`). A process of P takes a contiguous P-th of the images; of the statistics
only count, mean and scatter travel, features only where a metric needs them all.

A folder, where one is given, keeps what was done: `state.npz`, replaced as a whole now and then, and `NAME.f32`, rows of float32, cut to what the state knows.
"""

import io
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int32, PyTree, UInt8

from jaxdrl.encoders.spec import FeatureSpec
from jaxdrl.errors import Stopped, UserError
from jaxdrl.evaluation import hosts
from jaxdrl.evaluation.local_devices import local_mesh, replicated
from jaxdrl.evaluation.statistics import Moments
from jaxdrl.weights.files import make_atomically

UNKNOWN = -1  # the label of an image without one
_ROWS = 4096  # features that are merged at a time


@runtime_checkable
class ImageSource(Protocol):
    """Numbered images, with labels or `UNKNOWN`."""

    def __len__(self) -> int:
        """How many."""
        ...

    def batches(
        self, start: int, stop: int, size: int
    ) -> Iterator[tuple[UInt8[np.ndarray, "batch h w c"], Int32[np.ndarray, " batch"]]]:
        """Images start .. stop - 1 in order, at most `size` at a time."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """One forward pass, which may give several features.

    Attributes:
        params: Weights.
        apply: (params, images in [-1, 1], labels) -> name -> [batch, dim].
        traced: Whether JAX traces `apply`; otherwise it takes and gives NumPy arrays, while the devices work on the same batch.
    """

    params: PyTree
    apply: Callable[[PyTree, Any, Any], Mapping[str, Any]]
    traced: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Space:
    """A feature by name.

    Attributes:
        name: Of the space.
        spec: What defines its features.
        network: What computes them; spaces that share one share its pass.
        output: Which of its features.
    """

    name: str
    spec: FeatureSpec
    network: Network
    output: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Collected:
    """What is known of a set of images.

    Attributes:
        count: How many images.
        labels: Of the images.
        moments: Space -> count, mean and scatter.
        features: Space -> float32 rows, for the spaces that keep them.
        specs: Space -> specification.
        seconds: That this call spent, and
        computed: on how many images.
    """

    count: int
    labels: Int32[np.ndarray, " n"]
    moments: Mapping[str, Moments]
    features: Mapping[str, Float[np.ndarray, "n d"]]
    specs: Mapping[str, FeatureSpec]
    seconds: float = 0.0
    computed: int = 0


def collect(
    source: ImageSource,
    spaces: Sequence[Space],
    folder: Path | None,
    *,
    keep: Sequence[str] = (),
    description: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    seconds: float = 30.0,
    progress: Callable[[int], None] = lambda done: None,
    stop: Callable[[], bool] = lambda: False,
) -> Collected:
    """Computes what is asked of every image, or goes on with what an interrupted call left.

    Args:
        source: The images.
        spaces: Features; statistics are taken of each.
        folder: Of this set of images alone; made if missing. None: nothing is written, and kept features stay in memory.
        keep: Spaces whose features are kept.
        description: What defines the images, such as seed and guidance; a folder with another one is refused.
        batch_size: Images a device and call.
        seconds: Between two savings of the state.
        progress: Called with the number of images of this process that are done.
        stop: Asked behind every batch whether this process is to save its state and end; then all do, at the end of their parts.

    Returns:
        Statistics and features of all images, of all processes.

    Raises:
        UserError: If the folder holds something else, a feature is not finite, or there is no image.
        Stopped: If a process was to end.
    """
    index, processes = jax.process_index(), jax.process_count()
    if len(source) < processes:
        raise UserError(f"{len(source)} images are too few to measure with {processes} processes")
    start, last = (len(source) * part // processes for part in (index, index + 1))
    place = folder if folder is None or processes == 1 else folder / f"process-{index:05d}-of-{processes:05d}"
    wanted = {
        "description": dict(description or {}),
        "images": len(source),
        "specs": {space.name: space.spec.to_dict() for space in spaces},
        "keep": sorted(keep),
    }
    state = _State(place, wanted, start)
    began, before = time.monotonic(), state.done
    if state.done < last:
        _advance(state, source, spaces, last, batch_size, seconds, progress, stop)
    stopped = sum(int(part) for part in hosts.gather(np.array(last - state.done)))
    if stopped:
        state.close()
        raise Stopped(f"{stopped} of {len(source)} images are left to measure")
    state.finish()  # also where the last saving was of all images, and nothing came after it
    return _gathered(state, len(source), spaces, time.monotonic() - began, state.done - before)


def _advance(state: "_State", source: ImageSource, spaces: Sequence[Space], last: int, batch_size: int, seconds, progress, stop):
    """Computes the images that are missing, or some of them where it is told to stop."""
    mesh = local_mesh()
    with jax.set_mesh(mesh):
        features, size = _compiled(spaces, mesh), batch_size * mesh.size
        saved, pending = time.monotonic(), None
        for images, labels in source.batches(state.done, last, size):
            found = features(*_padded(images, labels, size)) | _on_host(spaces, images, labels)
            # The device works on this batch while the host merges the one before.
            if pending is not None:
                state.add(*pending)
                progress(state.done - state.start)
            pending = (found, labels)
            stops = stop()
            if stops or (state.folder is not None and time.monotonic() - saved > seconds):
                state.add(*pending)
                state.save()
                saved, pending = time.monotonic(), None
            if stops:
                return
        if pending is not None:
            state.add(*pending)
    if state.done != last:
        raise UserError(f"the source ended behind image {state.done}, it should have {last}")
    state.finish()
    state.save()
    progress(state.done - state.start)


class _State:
    """What a process has done, in memory and on disk."""

    def __init__(self, folder: Path | None, wanted: Mapping[str, Any], start: int) -> None:
        self.folder, self.wanted, self.done, self.start = folder, json.loads(json.dumps(wanted)), start, start
        self.moments: dict[str, Moments] = {}
        self.dims: dict[str, int] = {}
        self._waiting: dict[str, list[np.ndarray]] = {}
        self._labels: list[np.ndarray] = []
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / "state.npz").exists():
                self._restore(folder / "state.npz")
        self._files = {name: self._open(name) for name in wanted["keep"]}

    def _open(self, name: str) -> Any:
        if self.folder is None:
            return io.BytesIO()
        file = (self.folder / f"{name}.f32").open("ab")
        wanted = (self.done - self.start) * self.dims.get(name, 0) * 4
        if file.tell() < wanted:
            raise UserError(f"{self.folder / name}.f32 is shorter than its state says; delete {self.folder}")
        file.truncate(wanted)
        return file

    def _restore(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as kept:
                found = json.loads(str(kept["wanted"]))
                differs = [key for key in self.wanted if found.get(key) != self.wanted[key]]
                if differs:
                    said = "; ".join(f"{key}: {_difference(found.get(key), self.wanted[key])}" for key in differs)
                    raise UserError(f"{self.folder} holds another measurement ({said}); delete it or choose another folder")
                self.done = int(kept["done"])
                for name in self.wanted["specs"]:
                    self._waiting[name] = [kept[f"{name}/waiting"]]
                    self.dims[name] = self._waiting[name][0].shape[1]
                    if f"{name}/mean" in kept:
                        self.moments[name] = Moments(
                            count=int(kept[f"{name}/count"]), mean=kept[f"{name}/mean"], scatter=kept[f"{name}/scatter"]
                        )
                self._labels = [kept["labels"]]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is damaged ({error}); delete {self.folder}") from error

    def add(self, found: Mapping[str, Array | np.ndarray], labels: np.ndarray) -> None:
        for name, values in found.items():
            rows = np.asarray(values)[: len(labels)]
            if not np.isfinite(rows).all():
                worst = self.done + int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
                raise UserError(f"the {name} feature of image {worst} is not finite; is the network's dtype too narrow for it?")
            self.dims[name] = rows.shape[1]
            self._waiting.setdefault(name, []).append(rows)
            if name in self._files:
                self._files[name].write(np.ascontiguousarray(rows, np.float32).tobytes())
        self._labels.append(np.asarray(labels, np.int32))
        self.done += len(labels)
        while self._num_waiting() >= _ROWS:
            self._merge(_ROWS)

    def finish(self) -> None:
        """Merges what is left."""
        if self._num_waiting():
            self._merge(self._num_waiting())

    def _num_waiting(self) -> int:
        return sum(map(len, next(iter(self._waiting.values()), [])))

    def _merge(self, count: int) -> None:
        """Always the same rows together, so that neither batches nor savings change a bit."""
        for name, rows in self._waiting.items():
            together = np.concatenate(rows)
            mine = Moments.of(together[:count])
            self.moments[name] = self.moments[name].merge(mine) if name in self.moments else mine
            self._waiting[name] = [together[count:]]

    @property
    def labels(self) -> np.ndarray:
        return np.concatenate(self._labels) if self._labels else np.zeros(0, np.int32)

    def save(self) -> None:
        if self.folder is None:
            return
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        arrays: dict[str, Any] = {"wanted": json.dumps(self.wanted), "done": self.done, "labels": self.labels}
        for name, rows in self._waiting.items():
            arrays[f"{name}/waiting"] = np.concatenate(rows)
        for name, moments in self.moments.items():
            arrays |= {f"{name}/mean": moments.mean, f"{name}/scatter": moments.scatter, f"{name}/count": moments.count}

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, **arrays)

        make_atomically(self.folder / "state.npz", write)

    def features(self, name: str) -> np.ndarray:
        shape = (self.done - self.start, self.dims[name])
        if self.folder is None:
            return np.frombuffer(self._files[name].getvalue(), np.float32).reshape(shape)
        self._files[name].flush()
        return np.memmap(self.folder / f"{name}.f32", np.float32, "r", shape=shape)

    def close(self) -> None:
        if self.folder is not None:
            for file in self._files.values():
                file.close()


def _difference(found: Any, wanted: Any) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [key for key in found | wanted if found.get(key) != wanted.get(key)]
        return ", ".join(f"{key} {_difference(found.get(key), wanted.get(key))}" for key in keys)
    return f"{found} there, {wanted} wanted"


def _on_host(spaces: Sequence[Space], images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Features that NumPy computes."""
    chosen = [space for space in spaces if not space.network.traced]
    if not chosen:
        return {}
    floats = images.astype(np.float32) / np.float32(127.5) - 1
    return {space.name: np.asarray(space.network.apply(space.network.params, floats, labels)[space.output]) for space in chosen}


def _compiled(spaces: Sequence[Space], mesh: Mesh) -> Callable[..., dict[str, Array]]:
    """One program for all networks, with their weights laid out; images arrive as bytes."""
    networks: list[Network] = []
    spaces = [space for space in spaces if space.network.traced]
    for space in spaces:
        if all(space.network is not known for known in networks):
            networks.append(space.network)
    where = {space.name: next(i for i, network in enumerate(networks) if network is space.network) for space in spaces}
    outputs = tuple((space.name, where[space.name], space.output) for space in spaces)
    call = _program(tuple(network.apply for network in networks), outputs, mesh)
    rows, params = NamedSharding(mesh, PartitionSpec("data")), replicated([network.params for network in networks], mesh)
    return lambda images, labels: call(params, *jax.device_put((images, labels), rows))


@lru_cache(maxsize=8)
def _program(applies: tuple, outputs: tuple[tuple[str, int, str], ...], mesh: Mesh):
    """The weights are arguments, so that rows of a table and points of a sweep share a program."""

    def every(params, images, labels):
        floats = images.astype(jnp.float32) / 127.5 - 1
        # Accelerators would take TF32 or bfloat16 for a float32 network: pooled Inception features then differ by a percent.
        with jax.default_matmul_precision("highest"):
            found = [apply(part, floats, labels) for apply, part in zip(applies, params, strict=True)]
        return {name: found[number][output].astype(jnp.float32) for name, number, output in outputs}

    return jax.jit(every, out_shardings=NamedSharding(mesh, PartitionSpec("data")))


def _padded(images: np.ndarray, labels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    missing = size - len(images)
    if missing:
        images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
        labels = np.concatenate([labels, np.zeros(missing, labels.dtype)])
    return images, np.asarray(labels, np.int32)


def _gathered(state: _State, count: int, spaces: Sequence[Space], seconds: float, computed: int) -> Collected:
    moments = {}
    for space in spaces:
        mine = state.moments[space.name]
        parts = zip(*(hosts.gather(part) for part in (np.array([mine.count], np.int64), mine.mean, mine.scatter)), strict=True)
        total = Moments.empty(len(mine.mean))
        for number, mean, scatter in parts:
            total = total.merge(Moments(count=int(number[0]), mean=mean, scatter=scatter))
        moments[space.name] = total
    features = {name: hosts.concatenate(state.features(name)) for name in state.wanted["keep"]}
    state.close()
    return Collected(
        count=count,
        labels=hosts.concatenate(state.labels),
        moments=moments,
        features=features,
        specs={space.name: space.spec for space in spaces},
        seconds=seconds,
        computed=computed,
    )
