"""Rollouts beside rewards on the host: in which order, from which policy, and resumed to the bit."""

import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl.errors import UserError
from jaxdrl.rewards import jpeg
from jaxdrl.training import mesh, methods, models
from jaxdrl.training.methods import common, overlap, policy, scoring
from jaxdrl.weights import files
from tests.training import test_policy, test_posttrain

frozen = test_policy.frozen


class _Model(NamedTuple):
    old: Any


class _State(NamedTuple):
    refresh: Any
    model: _Model
    failing: Any
    behind: Any


class _Rolled(NamedTuple):
    images: Any
    labels: Any


def _machine(refreshes, broken=()):
    """Policies are the numbers of refreshes that they learnt from; what is called is kept."""
    said, left = [], list(broken)

    class Host(scoring.HostRewards):
        def __init__(self):
            pass

        def score(self, images, labels):
            said.append(f"score {images}")
            return f"scores of {images}", [""]

        def judge(self, errors, failing, refresh):
            if left and left[0] == refresh:
                left.pop(0)
                raise scoring.RewardsFailed("no")

    def roll(old, refresh, frozen, key):
        said.append(f"roll {int(refresh)} of {old}")
        return _Rolled(int(refresh), None)

    def learn(state, frozen, rolled, key, scored):
        said.append(f"learn {rolled.images}")
        assert scored == f"scores of {rolled.images}" and rolled.images == int(state.refresh)
        return _State(state.refresh + 1, _Model(state.model.old + 1), state.failing, state.model.old), {}

    step = overlap.Overlapped(roll, learn, Host(), refreshes)
    return step, _State(jnp.int32(0), _Model(0), np.zeros(1), 0), said


def test_the_next_rollout_is_dispatched_before_the_host_is_asked():
    step, state, said = _machine(3)
    for _ in range(3):
        state, _ = step(state, None, None)
    assert said == [
        *("roll 0 of 0", "roll 1 of 0", "score 0", "learn 0"),
        *("roll 2 of 1", "score 1", "learn 1"),
        *("score 2", "learn 2"),  # nothing more is rolled out
    ]
    assert state.model.old == 3 and state.behind == 2


def test_a_failure_changes_nothing_and_a_restored_state_is_rolled_out_again():
    step, state, said = _machine(4, broken=[2])
    state, _ = step(state, None, None)
    del said[:]
    with pytest.raises(scoring.RewardsFailed):
        step(state, None, None)
    assert said == ["roll 2 of 1", "score 1"]
    step(state, None, None)  # the same images
    assert said[2:] == ["roll 2 of 1", "score 1", "learn 1"]
    del said[:]
    restored = state._replace(refresh=jnp.int32(1))
    step(restored, None, None)
    assert said == ["roll 1 of 0", "roll 2 of 1", "score 1", "learn 1"]


def _config(algorithm="nft", **changes):
    config = test_policy._config(algorithm, **changes)
    with config.unlocked():
        config.posttrain.rewards = {"jpeg_compressibility": {}}
    config.posttrain.host.overlap = True
    config.posttrain.refreshes = 3
    return config


def _fingerprint(tree):
    return files.fingerprint(jax.device_get({str(i): leaf for i, leaf in enumerate(jax.tree.leaves(tree))}))


def test_what_sampled_is_the_old_policy_of_diffusion_nft(monkeypatch):
    """By tracing alone: v_old is evaluated with `behind` where there is one, and that is `model.old` one refresh later."""
    config, devices, key = _config(), mesh.create_mesh(), jax.random.key(5)
    halves, loss, seen = policy._Halves(config, policy.settings_from(config), devices), policy.nft.loss, []

    def watched(velocity, params, old, *rest):
        seen.append(jax.tree.leaves(old)[0])
        return loss(velocity, params, old, *rest)

    def learn(state, frozen, rolled):
        given.append(state)
        return halves.learn(state, frozen, rolled, key, scoring.Scored(jnp.zeros((len(rolled.labels), 1)), jnp.zeros(1, bool)))[0]

    monkeypatch.setattr(policy.nft, "loss", watched)
    with jax.set_mesh(devices):
        frozen = common.Frozen(jax.eval_shape(models.backbone(config).init, key), {}, None, None)
        state = jax.eval_shape(lambda base: policy.initial_state(config, base), frozen.base)
        rolled = jax.eval_shape(halves.roll, state.behind, state.refresh, frozen, key)
        for start, sampler in ((state, "behind"), (state._replace(behind=None), "model")):
            given: list[Any] = []
            seen.clear()
            after = jax.eval_shape(learn, start, frozen, rolled)
            trees = {"behind": given[0].behind, "model": given[0].model.old}
            assert seen and all(leaf is jax.tree.leaves(trees[sampler])[0] for leaf in seen)
            assert (after.behind is None) == (start.behind is None)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["nft", "flow_grpo"])
def test_refreshes_beside_rollouts_by_hand(frozen, algorithm):
    """Each learns from the samples of the policy one update before; a resumed one to the bit; DiffusionNFT's v_old is that policy."""
    config, devices, key = _config(algorithm, batch_size=20), mesh.create_mesh(), jax.random.key(5)
    settings = policy.settings_from(config)
    halves = policy._Halves(config, settings, devices)
    roll, learn = jax.jit(halves.roll), jax.jit(halves.learn)
    with jax.set_mesh(devices):
        host = scoring.HostRewards(config, common.rewards(config), devices)
        step, states, seen = overlap.Overlapped(roll, learn, host, 3), [policy.initial_state(config, frozen.base)], []
        for _ in range(3):
            after, metrics = step(states[-1], frozen, key)
            states.append(after), seen.append(jax.device_get(metrics))
        by_hand = states[0]
        for refresh in range(3):
            old = states[max(refresh - 1, 0)].model.old  # (1)
            rolled = roll(old, jnp.int32(refresh), frozen, key)
            by_hand, _ = learn(by_hand, frozen, rolled, key, host.score(rolled.images, rolled.labels)[0])
            assert _fingerprint(by_hand) == _fingerprint(states[refresh + 1])
        restored = jax.tree.map(jnp.copy, states[2])
        again, _ = step(restored, frozen, key)
        assert _fingerprint(again) == _fingerprint(states[3])
        # A state without it, whose old policy is the one that sampled, learns the same.
        current = states[2]
        plain = current._replace(model=current.model._replace(old=current.behind), behind=None)
        rolled = roll(current.behind, current.refresh, frozen, key)
        learnt, _ = learn(plain, frozen, rolled, key, host.score(rolled.images, rolled.labels)[0])
    assert test_policy._distance(learnt.model.params, states[3].model.params) < 1e-6
    assert test_policy._distance(current.behind, current.model.old) > 1e-5
    assert learnt.behind is None and jax.tree.structure(states[3].behind) == jax.tree.structure(frozen.base)
    if algorithm == "flow_grpo":
        assert seen[0]["ratio_deviation"] < 1e-6 < seen[1]["ratio_deviation"]  # the ratio knows that the sampler was another


def test_there_must_be_something_to_wait_for():
    for algorithm in ("nft", "adjoint_matching"):
        config = test_policy._config("nft")
        config.posttrain.host.overlap, config.posttrain.algorithm = True, algorithm
        with pytest.raises(UserError, match=r"config\.posttrain\.host\.overlap: every reward is traced"):
            methods.of(config).settings_from(config)


@pytest.mark.slow
def test_a_run_that_overlaps_is_killed_and_resumed(tmp_path, monkeypatch):
    """Ctrl-C and failing rewards, each in a process's first or later refresh: the same weights and metrics to the bit."""
    config, sizes, left = test_posttrain._nft(), jpeg.sizes, []
    config.posttrain.host.overlap = True
    config.posttrain.refreshes, config.runtime.checkpoint_seconds = 4, 0.0

    def breaks(images, **options):
        failure = left.pop(0) if left else None
        if failure is not None:
            raise failure
        return sizes(images, **options)

    monkeypatch.setattr(jpeg, "sizes", breaks)
    for part in ("whole", "cut", "plain"):
        test_posttrain._prepared(config, tmp_path / part)
    whole = test_posttrain._run(config, tmp_path / "whole")
    dead = ConnectionError("refused")
    left += [None, None, dead, dead]
    with pytest.raises(UserError, match="before learning from refresh 3"):
        test_posttrain._run(config, tmp_path / "cut")
    check = test_posttrain.posttrain._check_rewards

    def interrupted(metrics, refresh):
        check(metrics, refresh)
        if refresh == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(test_posttrain.posttrain, "_check_rewards", interrupted)
        test_posttrain._run(config, tmp_path / "cut")
    assert test_posttrain._run(config, tmp_path / "cut") == whole and not left
    tuned = [files.fingerprint(files.load_tree(tmp_path / part / "posttrain/model.safetensors")) for part in ("whole", "cut")]
    assert tuned[0] == tuned[1] and test_posttrain._metrics(tmp_path / "whole") == test_posttrain._metrics(tmp_path / "cut")
    config.posttrain.host.overlap = False
    test_posttrain._run(config, tmp_path / "plain")
    assert files.fingerprint(files.load_tree(tmp_path / "plain/posttrain/model.safetensors")) != tuned[0]


def test_the_device_computes_while_the_host_is_asked():
    """The reward waits until the next rollout's images are there, which without overlap would never be."""
    ready = threading.Event()
    started = []

    def roll(old, refresh, frozen, key):
        images = jnp.full(2, refresh) + old
        if int(refresh):
            started.append(images)
            ready.set()
        return _Rolled(images, None)

    class Host(scoring.HostRewards):
        def __init__(self):
            pass

        def score(self, images, labels):
            assert ready.wait(10)
            started[-1].block_until_ready()
            return None, [""]

        def judge(self, *arguments):
            pass

    learn = lambda state, *_: (state._replace(refresh=state.refresh + 1), {})  # noqa: E731
    step = overlap.Overlapped(roll, learn, Host(), 2)
    step(_State(jnp.int32(0), _Model(jnp.float32(0)), np.zeros(1), jnp.float32(0)), None, None)
