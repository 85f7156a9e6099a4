"""Rewards that raise, hang, die or give nonsense: asked again, and at last an answer that is none."""

import gc
import os
import signal
import threading
import time

import numpy as np
import pytest

from jaxdrl import rewards
from jaxdrl.rewards import supervised

IMAGES, LABELS = np.zeros((4, 2, 2, 1), np.float32), np.array([0, 1, 0, 1], np.int32)
QUICK = supervised.Settings(timeout_seconds=0.2, retries=2, backoff_seconds=0.0)


def _reward(apply, **fields):
    return rewards.Reward(name="odd", apply=apply, traced=False, **fields)


def _in_turn(*answers):
    """Gives or raises what is next."""
    left = list(answers)

    def apply(images, condition):
        answer = left.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return np.asarray(answer)

    return apply, left


def test_what_succeeds_is_asked_once():
    apply, left = _in_turn([1.0, 2.0, np.nan, np.inf], [0.0] * 4)
    outcome = supervised.Supervised(_reward(apply, scale=2.0), QUICK)(IMAGES, LABELS)
    np.testing.assert_array_equal(outcome.values, np.float32([2, 4, np.nan, np.inf]))  # the caller masks what is not finite
    assert outcome.error == "" and len(left) == 1 and outcome.values.dtype == np.float32


@pytest.mark.parametrize("failure", [ConnectionError("refused"), SystemExit(3), [1.0, 2.0], [np.nan] * 4])
def test_a_failure_is_retried(failure):
    apply, left = _in_turn(failure, failure, [1.0, 2.0, 3.0, 4.0])
    outcome = supervised.Supervised(_reward(apply), QUICK)(IMAGES, LABELS)
    assert outcome.error == "" and outcome.values.tolist() == [1, 2, 3, 4] and not left


def test_after_the_retries_there_is_no_value():
    apply, left = _in_turn(*[ConnectionError(f"refused\n{i}") for i in range(4)])
    outcome = supervised.Supervised(_reward(apply), QUICK)(IMAGES, LABELS)
    assert np.isnan(outcome.values).all() and outcome.values.shape == (4,)
    assert outcome.error == "ConnectionError: refused 2" and len(left) == 1


def test_a_reward_that_applies_to_none_of_the_images_has_not_failed():
    apply, left = _in_turn([1.0] * 4, [np.nan] * 4)
    supervise = supervised.Supervised(_reward(apply, classes=(7,)), QUICK)
    outcome = supervise(IMAGES, LABELS)
    assert outcome.error == "" and np.isnan(outcome.values).all() and len(left) == 1
    assert supervised.applies(_reward(apply, classes=(1, 7)), LABELS).tolist() == [False, True, False, True]


def test_a_reward_that_hangs_is_left_behind():
    released, calls = threading.Event(), []

    def apply(images, condition):
        calls.append(threading.current_thread())
        if len(calls) == 1:
            released.wait(20)
        return np.ones(4)

    began = time.monotonic()
    outcome = supervised.Supervised(_reward(apply), QUICK)(IMAGES, LABELS)
    assert outcome.error == "" and outcome.values.tolist() == [1, 1, 1, 1] and time.monotonic() - began < 10
    assert calls[0].daemon and calls[0].is_alive() and calls[0] is not calls[1]
    released.set()
    once = supervised.Settings(timeout_seconds=0.05, retries=0)
    released.clear(), calls.clear()
    assert supervised.Supervised(_reward(apply), once)(IMAGES, LABELS).error == "TimeoutError: no answer within 0.05 s"
    released.set()


def test_pauses_double(monkeypatch):
    slept = []
    monkeypatch.setattr(supervised.time, "sleep", slept.append)
    apply, _ = _in_turn(*[ValueError()] * 4)
    supervised.Supervised(_reward(apply), supervised.Settings(retries=3, backoff_seconds=0.5))(IMAGES, LABELS)
    assert slept == [0.5, 1.0, 2.0]


def test_settings_are_checked():
    for wrong in ({"timeout_seconds": 0.0}, {"retries": -1}, {"backoff_seconds": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            supervised.Settings(**wrong)
    with pytest.raises(ValueError, match="must be one on the host"):
        supervised.Supervised(rewards.create("brightness"), QUICK)
    with pytest.raises(ValueError, match="have fields"):
        supervised.Supervised(_reward(lambda images, condition: None), supervised.Settings(isolate=True))
    assert len(supervised.one_line(ValueError("x\ny" * 200))) == 200


@pytest.mark.slow
def test_a_reward_in_a_process_of_its_own():
    """It is stopped (it hangs), killed, and asked for what it cannot do; the process is started again each time that it has to be."""
    images = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32)
    fields = {"name": "jpeg_compressibility", "label": "size", "quality": 50, "classes": (0,)}
    reward = rewards.create(**fields)
    settings = supervised.Settings(timeout_seconds=5.0, retries=1, backoff_seconds=0.0, isolate=True)
    supervise = supervised.Supervised(reward, settings, fields)
    expected = reward(images, LABELS)
    np.testing.assert_array_equal(supervise(images, LABELS).values, expected)
    pids = [supervise._process._process.pid]
    for blow in (signal.SIGSTOP, signal.SIGKILL):
        os.kill(pids[-1], blow)
        outcome = supervise(images, LABELS)
        assert outcome.error == ""
        np.testing.assert_array_equal(outcome.values, expected)
        pids.append(supervise._process._process.pid)
    assert len(set(pids)) == 3
    broken = images.copy()
    broken[1] = np.nan
    assert "images [1] have values that are not finite" in supervise(broken, LABELS).error
    assert supervise(images, LABELS).error == "" and supervise._process._process.pid == pids[-1]  # it has survived that
    process = supervise._process._process
    del supervise
    gc.collect()
    process.join(20)
    assert not process.is_alive()
    unknown = supervised.Supervised(reward, settings, {"name": "sparkle"})
    assert "'sparkle' is unknown" in unknown(images, LABELS).error
    dies = supervised.Supervised(reward, supervised.Settings(retries=0, isolate=True), fields)
    dies(images, LABELS)
    os.kill(dies._process._process.pid, signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (dies._process._process.pid, signal.SIGKILL)).start()
    assert dies(images, LABELS).error == "RuntimeError: its process died (exit code -9)"
