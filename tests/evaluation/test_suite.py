"""Metrics by name, from features that are given."""

import numpy as np
import pytest

from jaxdrl.encoders.spec import FeatureSpec
from jaxdrl.errors import UserError
from jaxdrl.evaluation import frechet, inception_score, kernel, manifold, memorisation, ratio, search, suite
from jaxdrl.evaluation.collect import UNKNOWN, Collected
from jaxdrl.evaluation.sampling import Guidance
from jaxdrl.evaluation.statistics import Moments

RNG = np.random.default_rng(0)


def _collected(features, labels=None):
    features = {name: np.asarray(values, np.float32) for name, values in features.items()}
    count = len(next(iter(features.values())))
    labels = np.full(count, UNKNOWN, np.int32) if labels is None else labels
    moments = {name: Moments.of(values) for name, values in features.items()}
    specs = {name: FeatureSpec(network=name, fingerprint="", pooling="", size=0) for name in features}
    return Collected(count=count, labels=labels, moments=moments, features=features, specs=specs)


def _set(shift, count=400, seed=0):
    rng = np.random.default_rng(seed)
    features = {
        name: rng.normal(size=(count, 8)) + shift for name in (*ratio.VALIDATION, "inception", "inception-logits", "cmmd", "own")
    }
    colours = rng.normal(size=(count, 5)) * 0.1 + 0.5 + 0.1 * shift
    return _collected(
        {**features, "drift": colours, "spectrum": np.exp(rng.normal(size=(count, 4)) + shift)},
        (np.arange(count) % 4).astype(np.int32),
    )


@pytest.fixture(scope="module")
def sets():
    return suite.Sets(samples=_set(0.3, seed=1), reference=_set(0.0, 500, seed=2), train=_set(0.0, 300, seed=3), encoder="own")


def test_every_metric_is_the_function_of_its_space(sets):
    fake, real = sets.samples.features, sets.reference.features
    numbers, _ = suite.measure(
        ["fid", "fd", "kid", "kd", "is", "is-torch-fidelity", "cmmd", "prdc", "adm-pr", "fd-infinity"], sets
    )
    value = {name: number.value for name, number in numbers.items()}
    assert value["fid"] == pytest.approx(frechet.frechet_from_features(real["inception"], fake["inception"]))
    assert value["fd"] == pytest.approx(frechet.frechet_from_features(real["own"], fake["own"])) != value["fid"]
    assert (value["kid"], numbers["kid"].spread) == kernel.kernel_distance(real["inception"], fake["inception"])
    assert value["kd"] == kernel.kernel_distance(real["own"], fake["own"])[0]
    for name, rule in (("is", "adm"), ("is-torch-fidelity", "torch-fidelity")):
        assert (value[name], numbers[name].spread) == inception_score.inception_score(fake["inception-logits"], rule)
    assert value["cmmd"] == kernel.cmmd(real["cmmd"], fake["cmmd"])
    assert tuple(value[name] for name in manifold.Manifold._fields) == pytest.approx(
        tuple(manifold.measure(real["own"], fake["own"]))
    )
    assert (value["adm-precision"], value["adm-recall"]) == manifold.adm_precision_recall(real["own"], fake["own"])
    reference = frechet.Reference(sets.reference.moments["own"])
    assert value["fd-infinity"] == frechet.extrapolated(reference, fake["own"])[0]
    assert {numbers["fid"].space, numbers["fd"].space} == {"inception", "own"}


def test_fdr6_spectrum_drift_memorisation_accuracy(sets):
    numbers, _ = suite.measure(["fdr6", "spectrum", "drift", "memorisation", "accuracy"], sets)
    value = {name: number.value for name, number in numbers.items()}
    one = frechet.frechet_from_features(sets.reference.features["fdr-mae"], sets.samples.features["fdr-mae"])
    assert value["fdr-mae"] == pytest.approx(one / 0.04)
    assert value["fdr6"] == pytest.approx(np.mean([value[name] for name in ratio.VALIDATION]))
    assert value["spectrum"] == pytest.approx(0.3 / np.log(10), abs=0.06)
    assert value["drift/brightness"] == pytest.approx(0.53, abs=0.02) and value["drift/brightness/moved"] == pytest.approx(
        0.3, abs=0.15
    )
    own = [part.features["own"] for part in (sets.samples, sets.train, sets.reference)]
    assert value["memorisation"] == memorisation.copies(*own)
    shares = [value[f"accuracy/{label}"] for label in range(4)]
    assert value["accuracy"] == pytest.approx(np.mean(shares)) and 0.1 < value["accuracy"] < 0.4


def test_intervals_hold_what_fresh_samples_give():
    """95 % intervals of FD, IS and precision around numbers of 400 samples cover those of most fresh draws' mean."""
    options = suite.Options(bootstrap=60)
    sets = suite.Sets(samples=_set(0.5, seed=1), reference=_set(0.0, 2000, seed=2), encoder="own", options=options)
    numbers, _ = suite.measure(["fd", "is", "prdc"], sets)
    fresh = [
        suite.measure(["fd", "is", "prdc"], suite.Sets(samples=_set(0.5, seed=s), reference=sets.reference, encoder="own"))[0]
        for s in range(10, 18)
    ]
    low, high = numbers["is"].interval
    spread = np.std([part["is"].value for part in fresh])
    assert low < numbers["is"].value < high and 1.5 * spread < high - low < 9 * spread
    low, high = numbers["precision"].interval
    share = numbers["precision"].value
    assert low < share < high and high - low == pytest.approx(3.92 * np.sqrt(share * (1 - share) / 400), rel=0.3)
    low, high = numbers["fd"].interval
    assert low < high and suite.measure(["fd"], sets)[0]["fd"].interval == (low, high)
    assert all(number.interval is None for number in fresh[0].values())


def test_few_samples_are_warned_of(sets):
    far = suite.Sets(samples=_set(1.0, seed=1), reference=sets.reference, encoder="own")
    assert suite.measure(["fd"], far)[1] == []
    few = suite.Sets(samples=_set(0.05, 7, seed=1), reference=sets.reference, encoder="own")
    _, warnings = suite.measure(["fd"], few)
    assert "7 samples in 8 dimensions" in warnings[0] and "comes from having 7 samples only" in warnings[1]


def test_smaller_subsets_are_warned_of(sets):
    options = suite.Options(kernel_subset_size=10_000, kernel_subsets=2)
    larger = suite.Sets(samples=sets.samples, reference=sets.reference, encoder="own", options=options)
    assert "instead of 10000" in suite.measure(["kd"], larger)[1][0]


def test_what_is_missing_is_told(sets):
    alone = suite.Sets(samples=sets.samples, statistics={"own": sets.reference.moments["own"]}, encoder="own")
    assert suite.measure(["fd"], alone)[0]["fd"].value == suite.measure(["fd"], sets)[0]["fd"].value
    with pytest.raises(UserError, match="needs images: give --reference"):
        suite.measure(["kd"], alone)
    with pytest.raises(UserError, match="'fdi' is unknown"):
        suite.measure(["fdi"], sets)
    with pytest.raises(UserError, match="prdc: 3 samples have no 3-th"):
        suite.measure(["prdc"], suite.Sets(samples=_set(0.0, 3), reference=sets.reference, encoder="own"))
    unlabelled = _collected(dict(sets.samples.features))
    with pytest.raises(UserError, match="labels"):
        suite.measure(["accuracy"], suite.Sets(samples=unlabelled, reference=sets.reference, encoder="own"))


def test_what_is_collected_is_what_is_needed():
    assert suite.spaces_of(["fid", "fd"], "own") == {"inception": (False, "moments"), "own": (False, "moments")}
    assert suite.spaces_of(["fid", "kid", "is"], "own") == {"inception": (True, "features"), "inception-logits": (True, "")}
    assert suite.needs_bootstrap_features(["fid", "fd", "is"], "own") == {"inception", "own"}
    assert suite.to_json({"x": suite.Number(value=1.0, spread=0.0, space="own")}) == {
        "x": {"value": 1.0, "spread": 0.0, "space": "own"}
    }


def test_the_search_measures_each_point_once(tmp_path):
    """A bowl with its bottom at scale 1.5 on the second interval."""
    points, seen = search.grid([2, 1, 1.5, 1], [(0, 1), (0.1, 1)]), []
    assert [point.scale for point in points] == [1, 1.5, 2, 1.5, 2]

    def measure(guidance):
        seen.append(guidance)
        if len(seen) == 3:
            raise KeyboardInterrupt
        bowl = (guidance.scale - 1.5) ** 2 + (guidance.interval[0] - 0.1) ** 2
        return {"fd": bowl, "recall": 1 / guidance.scale, "precision": guidance.scale}

    with pytest.raises(KeyboardInterrupt):
        search.search(points, measure, tmp_path, {"num": 5})
    cells = search.search(points, measure, tmp_path, {"num": 5})
    assert len(seen) == 6 and seen[3:] == points[2:]
    assert search.best(cells, "fd").guidance == Guidance(1.5, (0.1, 1.0)) and search.best(cells, "recall").guidance.scale == 1
    assert [cell.guidance.scale for cell in search.pareto(cells, "precision", "recall")] == [2, 1.5, 1]
    assert len(search.pareto(cells, "fd", "recall")) == 2
    with pytest.raises(UserError, match="another num"):
        search.search(points, measure, tmp_path, {"num": 6})
    with pytest.raises(UserError, match="'fid' has not been measured"):
        search.best(cells, "fid")
    with pytest.raises(UserError, match="LOW < HIGH"):
        search.grid([1.5], [(0.5, 0.5)])
