"""Rewards on the host that may fail: a time limit, attempts one after the other, and at last an answer that says it is none.

A reward that asks a server or a program can raise, hang, die or give nonsense. Attempt i = 0 .. retries starts after a pause of

    0 (i = 0), then backoff * 2^(i - 1) seconds,                                                                (1)

and fails where the call raises, gives no answer in time or another shape, or where no value is finite although the reward applies (to a
selective one NaN says that it does not). If all
fail, every value is NaN and `Outcome.error` says why; values that are not finite in an answer that has others are left to the caller,
who masks and counts them.

A call runs in a thread of its own. A thread that hangs cannot be stopped: it is left behind (a daemon, which does not keep the process
alive), and the next attempt gets a new one. With `isolate` the reward lives in a process of its own, made there again by name and
fields; one that hangs is killed, one that hung or died is started anew, so that not even a segmentation fault ends a run.
"""

import multiprocessing
import queue
import signal
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxdrl.rewards.combine import Reward, create

Answer = TypeVar("Answer")
_START_SECONDS = 120.0  # to start a process and import what a reward needs


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How patient a caller is.

    Attributes:
        timeout_seconds: Of one attempt, above 0.
        retries: Further attempts, at least 0.
        backoff_seconds: Of (1), at least 0.
        isolate: Whether the reward has a process of its own.
    """

    timeout_seconds: float = 60.0
    retries: int = 2
    backoff_seconds: float = 1.0
    isolate: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: If a value is out of range.
        """
        if self.timeout_seconds <= 0:
            raise ValueError(f"timeout_seconds ({self.timeout_seconds}) must be above 0")
        if self.retries < 0 or self.backoff_seconds < 0:
            raise ValueError(f"retries ({self.retries}) and backoff_seconds ({self.backoff_seconds}) must be at least 0")


class Outcome(NamedTuple):
    """What a reward gave.

    Attributes:
        values: float32, NaN where the reward does not apply; all NaN where it failed.
        error: Of the last attempt, one line; empty if it succeeded.
    """

    values: Float[np.ndarray, " batch"]
    error: str


class Supervised:
    """A reward on the host that always answers; call it as `supervised(images, condition)`."""

    def __init__(self, reward: Reward, settings: Settings, fields: Mapping[str, Any] | None = None) -> None:
        """Starts nothing yet.

        Args:
            reward: Not traced.
            settings: See `Settings`.
            fields: With which `create(**fields)` makes the reward again (`name` among them), for `settings.isolate`.

        Raises:
            ValueError: If the reward is traced, or is to be isolated and has no fields.
        """
        if reward.traced or (settings.isolate and fields is None):
            raise ValueError(f"reward {reward.name} must be one on the host, and have fields if it gets a process of its own")
        self._reward, self._settings = reward, settings
        self._process = _Process(dict(fields or {})) if settings.isolate else None

    @property
    def name(self) -> str:
        """Of the reward."""
        return self._reward.name

    def __call__(self, images: Float[np.ndarray, "batch h w c"], condition: Int[np.ndarray, " batch"]) -> Outcome:
        """Asks until there is an answer, or the attempts are used up.

        Args:
            images: In [-1, 1].
            condition: Labels.

        Returns:
            Values, or an error.
        """
        settings, error = self._settings, ""
        for attempt in range(settings.retries + 1):
            if attempt:
                time.sleep(settings.backoff_seconds * 2 ** (attempt - 1))  # (1)
            try:
                values = np.asarray(self._ask(images, condition), np.float32)
                concerned = applies(self._reward, condition)
                if values.shape != (len(images),):
                    raise ValueError(f"{values.shape} for {len(images)} images")
                if self._reward.selective:
                    concerned &= ~np.isnan(values)  # it may apply to none of these images
                if concerned.any() and not np.isfinite(values[concerned]).any():
                    raise ValueError("no value is finite")
                return Outcome(values, "")
            except Exception as failure:
                error = one_line(failure)
        return Outcome(np.full(len(images), np.nan, np.float32), error)

    def _ask(self, images: np.ndarray, condition: np.ndarray) -> Any:
        seconds = self._settings.timeout_seconds
        process = self._process
        if process is None:
            return _in_time(lambda: self._reward(images, condition), seconds)
        try:
            _in_time(process.start, _START_SECONDS)
            return _in_time(lambda: process.ask(images, condition), seconds)
        except TimeoutError:
            process.kill()
            raise


def applies(reward: Reward, condition: Int[np.ndarray, " batch"]) -> Bool[np.ndarray, " batch"]:
    """To which images a reward applies.

    Args:
        reward: With its classes.
        condition: Labels.

    Returns:
        A truth an image.
    """
    return np.ones(len(condition), bool) if reward.classes is None else np.isin(condition, reward.classes)


def one_line(error: BaseException) -> str:
    """What went wrong, in one line of at most 200 characters.

    Args:
        error: An exception.

    Returns:
        "Type: message".
    """
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _in_time(call: Callable[[], Answer], seconds: float) -> Answer:
    """Calls in a thread that is left behind when it takes too long."""
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:  # a reward that exits must not take the run with it
            answers.put((None, error.with_traceback(None)))

    threading.Thread(target=work, daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is None:
        return answer
    try:
        raise error if isinstance(error, Exception) else RuntimeError(one_line(error))
    finally:
        del error  # its traceback holds this frame, and above that of a thread: circles, which keep processes that nobody needs


class _Process:
    """A process with one reward in it, at the end of a pipe; killed when this object is collected."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields, self._process, self._pipe = fields, None, None

    def start(self) -> None:
        """Starts it unless it lives."""
        if self._process is not None and self._process.is_alive():
            return
        # Not forked: a fork of a process with JAX's threads may hang at once.
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self._fields), daemon=True)
        self._process.start()
        other.close()
        weakref.finalize(self, self._process.kill)
        try:
            self._answer()
        except RuntimeError:
            self.kill()
            raise

    def ask(self, images: np.ndarray, condition: np.ndarray) -> np.ndarray:
        """One call."""
        assert self._pipe is not None
        try:
            self._pipe.send((images, condition))
        except OSError:
            raise RuntimeError(self._death()) from None
        return self._answer()

    def kill(self) -> None:
        """Ends it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.join(10)

    def _answer(self) -> Any:
        assert self._pipe is not None
        try:
            error, values = self._pipe.recv()
        except (EOFError, OSError):
            raise RuntimeError(self._death()) from None
        if error:
            raise RuntimeError(error)
        return values

    def _death(self) -> str:
        assert self._process is not None
        self._process.join(10)
        return f"its process died (exit code {self._process.exitcode})"


def _serve(pipe: Any, fields: dict[str, Any]) -> None:
    """What the process does: makes the reward, then answers until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which closes the pipe
    jax.config.update("jax_platforms", "cpu")  # the accelerators belong to the run
    try:
        reward = create(**fields)
    except Exception as error:
        pipe.send((one_line(error), None))
        return
    pipe.send(("", None))
    while True:
        try:
            images, condition = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(("", np.asarray(reward(images, condition))))
        except Exception as error:
            pipe.send((one_line(error), None))
