"""Metrics by name: what each needs of the samples and of the reference, and how it is computed from that.

| name | what |
|---|---|
| fid, sfid, fid-pytorch-fid, fid-clean-fid | Frechet distance of Inception features, see `spaces.py` |
| fd-dinov2, fd-dinov3, fd-siglip, fd-clip, fd-mae, fd-convnext | Frechet distance in that space |
| fdr6 | FD-Loss's mean ratio over six spaces, and the ratios |
| is, is-torch-fidelity | Inception Score in ADM's and in torch-fidelity's splits |
| kid, cmmd | kernel distances in Inception's and CLIP's space |
| fd, fd-infinity, kd, prdc, adm-pr, accuracy, memorisation | in the space of `--encoder` |
| spectrum, drift | of the pixels: radial power-spectrum gap in decades; five statistics of colour and light, and how far they moved |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxdrl.errors import UserError
from jaxdrl.evaluation import classifier, drift, frechet, inception_score, kernel, manifold, memorisation, ratio, spectrum
from jaxdrl.evaluation.collect import UNKNOWN, Collected
from jaxdrl.evaluation.statistics import Moments


@dataclass(frozen=True, kw_only=True)
class Options:
    """How metrics are taken.

    Attributes:
        kernel_subsets: For KD and KID.
        kernel_subset_size: Samples a subset and side.
        kernel_seed: torch-fidelity's.
        k: Neighbour of precision and recall.
        density_k: Neighbour of density and coverage.
        bootstrap: Resamples for confidence intervals; 0: none.
        confidence: Of the intervals.
        seed: Of bootstrap and FD infinity.
    """

    kernel_subsets: int = 100
    kernel_subset_size: int = 1000
    kernel_seed: int = 2020
    k: int = 3
    density_k: int = 5
    bootstrap: int = 0
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Number:
    """One result.

    Attributes:
        value: The number.
        spread: Standard deviation over the subsets or splits of which it is the mean.
        interval: Bootstrap confidence interval over the generated samples, the reference held fixed; for recall and coverage over the
            real ones, the balls held fixed.
        space: In which it was taken.
    """

    value: float
    spread: float | None = None
    interval: tuple[float, float] | None = None
    space: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sets:
    """What metrics are computed from.

    Attributes:
        samples: Generated images.
        reference: Real ones, where they were images.
        statistics: Space -> statistics that came in a file.
        train: The generator's training images.
        encoder: Space of the metrics that have none of their own.
        options: See `Options`.
    """

    samples: Collected
    reference: Collected | None = None
    statistics: Mapping[str, Moments] = field(default_factory=dict)
    train: Collected | None = None
    encoder: str = "inception"
    options: Options = field(default_factory=Options)

    def real_moments(self, space: str) -> Moments:
        """The reference's; what a file says comes before what its images give."""
        if space in self.statistics:
            return self.statistics[space]
        return _there(self.reference, "reference").moments[space]

    def pair(self, space: str) -> tuple[np.ndarray, np.ndarray]:
        """Features of the reference and of the samples."""
        return _there(self.reference, "reference").features[space], self.samples.features[space]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a metric needs.

    Attributes:
        spaces: Whose statistics it needs; "" stands for the space of `--encoder`.
        compute: Sets and the spaces' names -> numbers by name.
        features: It needs the samples' features.
        reference: "moments", "features" or "" (nothing) of the reference.
        train: It needs the features of the training images.
    """

    spaces: tuple[str, ...]
    compute: Callable[..., dict[str, Number]]
    features: bool = False
    reference: str = "moments"
    train: bool = False


def spaces_of(metrics: list[str], encoder: str) -> dict[str, tuple[bool, str]]:
    """What is to be collected.

    Args:
        metrics: Names.
        encoder: Space of the metrics without one.

    Returns:
        Space -> (samples' features are needed, what of the reference is: "", "moments" or "features").

    Raises:
        UserError: If a metric is unknown.
    """
    found: dict[str, tuple[bool, str]] = {}
    for name in metrics:
        metric = get(name)
        for space in (part or encoder for part in metric.spaces):
            features, reference = found.get(space, (False, ""))
            strongest = max(reference, metric.reference, key=("", "moments", "features").index)
            found[space] = (features or metric.features, strongest)
    return found


def get(name: str) -> Metric:
    """A metric.

    Args:
        name: See the module.

    Returns:
        The metric.

    Raises:
        UserError: If it is unknown.
    """
    if name not in METRICS:
        raise UserError(f"--metrics: {name!r} is unknown; choose from {', '.join(METRICS)}")
    return METRICS[name]


def measure(names: list[str], sets: Sets) -> tuple[dict[str, Number], list[str]]:
    """Computes metrics.

    Args:
        names: Of metrics.
        sets: From which.

    Returns:
        (numbers by name, warnings).

    Raises:
        UserError: If something is missing that a metric needs, or there are too few samples for it.
    """
    numbers: dict[str, Number] = {}
    for name in names:
        metric = get(name)
        try:
            numbers |= metric.compute(sets, *(space or sets.encoder for space in metric.spaces))
        except ValueError as error:
            raise UserError(f"{name}: {error}") from error
    return numbers, _warnings(names, sets, numbers)


def _warnings(names: list[str], sets: Sets, numbers: Mapping[str, Number]) -> list[str]:
    """Where the number of samples shows in a Frechet distance."""
    found = []
    for name in names:
        metric = METRICS[name]
        least = min(sets.samples.count, sets.reference.count if sets.reference else sets.samples.count)
        if name in ("kd", "kid") and least < sets.options.kernel_subset_size:
            found.append(f"{name}: subsets of {least} instead of {sets.options.kernel_subset_size}: there are no more images")
        if not isinstance(metric.compute, _Frechet):
            continue
        space = metric.spaces[0] or sets.encoder
        count, dim = sets.samples.count, len(sets.samples.moments[space].mean)
        share = frechet.bias(sets.real_moments(space), count)
        if count <= dim:
            found.append(f"{name}: {count} samples in {dim} dimensions: the covariance is singular")
        if share > 0.05 * abs(numbers[name].value):
            found.append(
                f"{name}: about {share:.3g} of it comes from having {count} samples only (so far would as many fresh samples of the "
                "reference itself lie from it); compare equal numbers of samples alone"
            )
    return found


def _there(found: Collected | None, what: str) -> Collected:
    if found is None:
        raise UserError(f"this metric needs images: give --{what}")
    return found


def _interval(values: np.ndarray, options: Options) -> tuple[float, float]:
    tail = 50 * (1 - options.confidence)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _resampled(statistic: Callable[[np.ndarray], float], count: int, options: Options) -> tuple[float, float] | None:
    if not options.bootstrap:
        return None
    rng = np.random.default_rng(options.seed)
    return _interval(np.array([statistic(rng.integers(0, count, count)) for _ in range(options.bootstrap)]), options)


class _Frechet:
    """A class so that `_warnings` knows it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, sets: Sets, space: str) -> dict[str, Number]:
        reference, options = frechet.Reference(sets.real_moments(space)), sets.options
        interval = None
        if options.bootstrap:
            drawn = frechet.bootstrap(reference, sets.samples.features[space], resamples=options.bootstrap, seed=options.seed)
            interval = _interval(drawn, options)
        value = reference.distance(sets.samples.moments[space])
        return {self._name: Number(value=value, interval=interval, space=space)}


def _fdr6(sets: Sets, *spaces: str) -> dict[str, Number]:
    distances = {s: frechet.frechet_distance(sets.real_moments(s), sets.samples.moments[s]) for s in spaces}
    return {name: Number(value=value, space="six spaces") for name, value in ratio.ratios(distances).items()}


def _infinity(sets: Sets, space: str) -> dict[str, Number]:
    reference = frechet.Reference(sets.real_moments(space))
    value, _, _ = frechet.extrapolated(reference, sets.samples.features[space], seed=sets.options.seed)
    return {"fd-infinity": Number(value=value, space=space)}


def _inception_score(name: str, rule: str) -> Callable[..., dict[str, Number]]:
    def compute(sets: Sets, space: str) -> dict[str, Number]:
        logits = sets.samples.features[space]
        value, spread = inception_score.inception_score(logits, rule)
        interval = _resampled(lambda rows: inception_score.inception_score(logits[rows], rule)[0], len(logits), sets.options)
        return {name: Number(value=value, spread=spread, interval=interval, space=space)}

    return compute


def _kernel(name: str) -> Callable[..., dict[str, Number]]:
    def compute(sets: Sets, space: str) -> dict[str, Number]:
        options = sets.options
        value, spread = kernel.kernel_distance(
            *sets.pair(space), subsets=options.kernel_subsets, subset_size=options.kernel_subset_size, seed=options.kernel_seed
        )
        return {name: Number(value=value, spread=spread, space=space)}

    return compute


def _cmmd(sets: Sets, space: str) -> dict[str, Number]:
    return {"cmmd": Number(value=kernel.cmmd(*sets.pair(space)), space=space)}


def _prdc(sets: Sets, space: str) -> dict[str, Number]:
    found = manifold.contributions(*sets.pair(space), k=sets.options.k, density_k=sets.options.density_k)
    return {
        name: Number(
            value=float(values.mean()),
            interval=_resampled(lambda rows, values=values: float(values[rows].mean()), len(values), sets.options),
            space=space,
        )
        for name, values in found._asdict().items()
    }


def _adm_pr(sets: Sets, space: str) -> dict[str, Number]:
    values = manifold.adm_precision_recall(*sets.pair(space), sets.options.k)
    return {f"adm-{name}": Number(value=v, space=space) for name, v in zip(("precision", "recall"), values, strict=True)}


def _accuracy(sets: Sets, space: str) -> dict[str, Number]:
    (real, fake), reference = sets.pair(space), _there(sets.reference, "reference")
    if (reference.labels == UNKNOWN).any() or (sets.samples.labels == UNKNOWN).any():
        raise UserError("accuracy needs the labels of samples and reference; an .npz may have them as `labels`")
    predicted = classifier.predict(real, reference.labels, fake)
    right = (predicted == sets.samples.labels).astype(float)
    interval = _resampled(lambda rows: float(right[rows].mean()), len(right), sets.options)
    by_class = classifier.accuracy_by_class(predicted, sets.samples.labels)
    return {"accuracy": Number(value=float(right.mean()), interval=interval, space=space)} | {
        f"accuracy/{label}": Number(value=value, space=space) for label, value in by_class.items()
    }


def _memorisation(sets: Sets, space: str) -> dict[str, Number]:
    train, (held_out, fake) = _there(sets.train, "train").features[space], sets.pair(space)
    value = memorisation.copies(fake, train, held_out)
    return {"memorisation": Number(value=value, space=space)}


def _spectrum(sets: Sets, space: str) -> dict[str, Number]:
    value = spectrum.gap(sets.real_moments(space).mean, sets.samples.moments[space].mean)
    return {"spectrum": Number(value=value, space=space)}


def _drift(sets: Sets, space: str) -> dict[str, Number]:
    mine, real = sets.samples.moments[space], sets.real_moments(space)
    spread = np.sqrt(np.diag(real.covariance))
    found = {}
    for index, name in enumerate(drift.NAMES):
        moved = (mine.mean[index] - real.mean[index]) / spread[index] if spread[index] > 0 else float("nan")
        found[f"drift/{name}"] = Number(value=float(mine.mean[index]), spread=float(np.sqrt(mine.covariance[index, index])))
        found[f"drift/{name}/moved"] = Number(value=float(moved))
    return found


_SPACE_OF = {
    "fid": "inception",
    "sfid": "inception-spatial",
    "fid-pytorch-fid": "inception-pytorch-fid",
    "fid-clean-fid": "inception-clean-fid",
    **{f"fd-{space}": space for space in ("dinov2", "dinov3", "siglip", "clip", "mae", "convnext")},
    "fd": "",
}
METRICS: dict[str, Metric] = {
    **{name: Metric(spaces=(space,), compute=_Frechet(name)) for name, space in _SPACE_OF.items()},
    "fd-infinity": Metric(spaces=("",), compute=_infinity, features=True),
    "fdr6": Metric(spaces=tuple(ratio.VALIDATION), compute=_fdr6),
    **{
        name: Metric(spaces=("inception-logits",), compute=_inception_score(name, rule), features=True, reference="")
        for name, rule in (("is", "adm"), ("is-torch-fidelity", "torch-fidelity"))
    },
    "kid": Metric(spaces=("inception",), compute=_kernel("kid"), features=True, reference="features"),
    "kd": Metric(spaces=("",), compute=_kernel("kd"), features=True, reference="features"),
    "cmmd": Metric(spaces=("cmmd",), compute=_cmmd, features=True, reference="features"),
    "prdc": Metric(spaces=("",), compute=_prdc, features=True, reference="features"),
    "adm-pr": Metric(spaces=("",), compute=_adm_pr, features=True, reference="features"),
    "accuracy": Metric(spaces=("",), compute=_accuracy, features=True, reference="features"),
    "memorisation": Metric(spaces=("",), compute=_memorisation, features=True, reference="features", train=True),
    "spectrum": Metric(spaces=("spectrum",), compute=_spectrum),
    "drift": Metric(spaces=("drift",), compute=_drift),
}


def needs_bootstrap_features(names: list[str], encoder: str) -> set[str]:
    """Spaces whose features bootstrap needs although the metric itself does with moments.

    Args:
        names: Of metrics.
        encoder: Space of the metrics without one.

    Returns:
        Names of spaces.
    """
    frechet_ones = [METRICS[name] for name in names if isinstance(METRICS[name].compute, _Frechet)]
    return {metric.spaces[0] or encoder for metric in frechet_ones}


def to_json(numbers: Mapping[str, Number]) -> dict[str, Any]:
    """Plain values.

    Args:
        numbers: From `measure`.

    Returns:
        name -> {"value", and what else is known}.
    """
    return {
        name: {key: value for key, value in vars(number).items() if value not in (None, "")} for name, number in numbers.items()
    }
