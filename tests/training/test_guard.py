"""The guard: what it warns of and in which words, when it looks at held-out images, and what it remembers."""

import ml_collections
import pytest

from jaxdrl.config import default
from jaxdrl.errors import UserError
from jaxdrl.training import guard, held_out

NEVER = {"spread": 0.0, "reward_spread": 0.0, "energy": 0.0, "coverage": 0.0, "drift": 0.0, "every": 10, "patience": 1}


def _options(**changes):
    return ml_collections.ConfigDict(NEVER | changes)


def _metrics(**changes):
    return {"control_energy": 0.0, "reward_mean": 1.0} | changes


def test_spread_and_energy():
    watch = guard.Guard(_options(spread=0.5, energy=4.0, patience=2))
    assert watch.check(_metrics(sample_spread=1.0, control_energy=0.1)) is None
    assert "40 % of what it was" in watch.check(_metrics(sample_spread=0.4)) and not watch.stops
    assert watch.check(_metrics(sample_spread=0.9)) is None and watch.wrong is None
    assert "5 nats from the base" in watch.check(_metrics(sample_spread=0.9, control_energy=5.0))
    both = watch.check(_metrics(sample_spread=0.2, control_energy=5.0))
    assert watch.stops and watch.wrong == both and "alike" in both and "nats" in both
    again = guard.Guard(_options(spread=0.5), [_metrics(sample_spread=1.0)])
    assert "alike" in again.check(_metrics(sample_spread=0.4)) and again.stops


def test_a_guard_with_zeros_never_stops():
    never = guard.Guard(_options(), base={"held_out_coverage": 0.9, "held_out_drift/contrast": 0.0})
    assert never.check(_metrics(sample_spread=1.0, control_energy=9.0)) is None
    worst = {"held_out_coverage": 0.0, "held_out_drift/contrast": 9.0, "group_spread/a": 0.0, "sample_spread": 0.0}
    assert never.check(_metrics(control_energy=99.0, **worst)) is None and not never.stops


def test_a_reward_that_tells_nothing_apart():
    watch = guard.Guard(_options(reward_spread=0.1))
    first = {"group_spread/a": 2.0, "group_spread/b": 0.0, "missing_share/b": 1.0}  # b was masked
    assert watch.check(_metrics(**first)) is None
    assert watch.check(_metrics(**{"group_spread/a": 0.3, "group_spread/b": 1.0, "missing_share/b": 0.0})) is None
    assert watch.check(_metrics(**{"group_spread/a": 2.0, "group_spread/b": 0.0, "missing_share/b": 1.0})) is None
    said = watch.check(_metrics(**{"group_spread/a": 2.0, "group_spread/b": 0.05, "missing_share/b": 0.5}))
    assert "the reward b hardly tells" in said and "5 % of what it was" in said and "guard.reward_spread" in said
    assert "the reward c is finite for no image" in watch.check(_metrics(**{"reward_not_finite/c": 1.0}))
    assert watch.check(_metrics(**{"reward_not_finite/c": 0.9})) is None


def test_reward_hacking_is_called_by_its_name():
    base = {"held_out_coverage": 0.7, "held_out_drift/brightness": 0.0, "held_out_drift/contrast": 0.0}
    watch = guard.Guard(_options(coverage=0.2, drift=2.0, patience=2), base=base)
    assert watch.check(_metrics(reward_mean=-1.0)) is None
    assert watch.check(_metrics(reward_mean=3.0, held_out_coverage=0.51)) is None
    said = watch.check(_metrics(reward_mean=3.0, held_out_coverage=0.4))
    assert (
        "reward hacking: the reward has risen from -1 to 3 while coverage of held-out images has fallen from 0.70 to 0.40" in said
    )
    fallen = watch.check(_metrics(reward_mean=-2.0, held_out_coverage=0.4))
    assert "hacking" not in fallen and "fallen from 0.70 to 0.40 (config.posttrain.guard.coverage)" in fallen and watch.stops
    light = {"held_out_coverage": 0.7, "held_out_drift/brightness": -2.5, "held_out_drift/contrast": 1.9}
    said = watch.check(_metrics(**light))
    assert "brightness by -2.5 (config.posttrain.guard.drift)" in said and "contrast" not in said


def test_held_out_images_are_looked_at_more_closely_after_a_bad_look():
    options, base = _options(coverage=0.2, patience=3), {"held_out_coverage": 0.7}
    good, bad = _metrics(held_out_coverage=0.7), _metrics(held_out_coverage=0.1)
    watch, seen = guard.Guard(options, base=base), []
    due = lambda: [refresh for refresh in range(1, 22) if watch.due(refresh, last=refresh == 21)]  # noqa: E731
    assert due() == [10, 20, 21]
    for metrics in (_metrics(), bad, _metrics(spare=0.0)):
        seen.append(metrics)
        watch.check(metrics)
        resumed = guard.Guard(options, seen, base)
        assert [resumed.due(refresh, False) for refresh in (3, 10)] == [watch.due(refresh, False) for refresh in (3, 10)]
    assert due() == list(range(1, 22))  # until one is good
    watch.check(good)
    assert due() == [10, 20, 21] and not watch.stops
    assert not guard.Guard(options).due(10, True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"coverage": -0.1}, r"guard\.coverage \(-0\.1\)"),
        ({"patience": 0}, "patience"),
        ({"samples": 0}, "samples"),
        ({"drift": 1.0}, r"guard\.drift is for colour"),
        ({"drift": 1.0, "every": 0}, r"guard\.drift: nothing is measured"),
    ],
)
def test_settings_out_of_range_are_told(changes, said):
    config = default()
    held_out.check(config)
    config.posttrain.guard.update(changes)
    with pytest.raises(UserError, match=said):
        held_out.check(config)
    config.data.image_shape = (8, 8, 3)
    config.posttrain.guard.update(drift=1.0, every=1, coverage=0.1, patience=1, samples=1)
    held_out.check(config)
