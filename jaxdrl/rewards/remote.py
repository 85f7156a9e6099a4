"""A reward over HTTP: any program that answers `wire.py`'s schema, on this machine or another.

Images are sent as bytes (`pixels.py`), `batch_size` at a time, with at most `workers` requests under way: that is how hard a server is pushed. One
that is busy says 503 with `Retry-After`, and is asked again after that pause, as long as there is time. Anything else that goes
wrong raises, in one line with the url, and the whole call has failed: `supervised.py` asks again, and `training/methods/scoring.py` masks the
reward or ends the run before anything is lost. There is no second layer of retries here.

    create("remote", url="http://localhost:8400")
    create("remote", url="https://rewards.example/score", field="aesthetic", token_variable="REWARD_TOKEN", prompts=("a zero", "a one"))

Proxies are those of the environment (`http_proxy`, `no_proxy`). A redirect is an error: it would lose the body, and take the token elsewhere.
"""

import http.client
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxdrl.errors import UserError
from jaxdrl.rewards import wire
from jaxdrl.rewards.by_class import of_condition
from jaxdrl.rewards.pixels import to_bytes

_MOST_BYTES = 64 << 20  # of an answer
_PAUSE, _LEAST_PAUSE = 1.0, 0.05  # seconds, where a busy server does not say how long; and however short it says


def reward(
    *,
    url: str,
    field: str = "",
    batch_size: int = 32,
    workers: int = 4,
    timeout_seconds: float = 60.0,
    token_variable: str = "",
    prompts: Sequence[str] = (),
    form: str = "png",
) -> Callable[..., Any]:
    """Makes the reward.

    Args:
        url: Where to POST.
        field: Which of the answer's scores; empty: the only one.
        batch_size: Images a request.
        workers: Requests under way at a time.
        timeout_seconds: Of one call, all of its requests together. In a run it is `config.posttrain.host.timeout_seconds`.
        token_variable: The environment variable that holds a token, sent as `Authorization: Bearer TOKEN`; empty: none is sent.
        prompts: That of each class, sent along; empty: none is sent.
        form: How images are sent: png or uint8.

    Returns:
        (images, condition) -> float32 [batch], NaN where the server says null. It raises ConnectionError, TimeoutError, RuntimeError
        (another status than 200) or ValueError (not of the schema).

    Raises:
        UserError: If a field is out of range, or the variable is not set.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise UserError(f"url: {url!r} must be http://HOST[:PORT][/PATH] or https://..., without a password (see token_variable)")
    if batch_size < 1 or workers < 1 or timeout_seconds <= 0:
        raise UserError(f"batch_size ({batch_size}) and workers ({workers}) must be at least 1, timeout_seconds above 0")
    if form not in wire.FORMATS:
        raise UserError(f"form: {form!r} must be one of {', '.join(wire.FORMATS)}")
    headers = {"Content-Type": "application/json"}
    if token_variable:
        token = os.environ.get(token_variable, "")
        if not token.strip():
            raise UserError(
                f"token_variable: the environment variable {token_variable} is not set; export it, or leave the field out"
            )
        headers["Authorization"] = f"Bearer {token.strip()}"
    server = _Server(url=url, headers=headers, seconds=timeout_seconds)

    def apply(images: Float[np.ndarray, "batch h w c"], condition: Int[np.ndarray, " batch"]) -> Float[np.ndarray, " batch"]:
        until = time.monotonic() + timeout_seconds
        pixels = to_bytes(images, what="a remote reward")
        asked = tuple(of_condition(prompts, label, "prompts") for label in condition) if prompts else None

        def ask(start: int) -> Float[np.ndarray, " part"]:
            part = slice(start, start + batch_size)
            request = wire.Request(pixels[part], condition[part], None if asked is None else asked[part])
            answer = server.ask(wire.encode_request(request, form), until)
            try:
                return wire.decode_scores(answer, len(request.images), field)
            except wire.SchemaError as error:
                raise wire.SchemaError(f"{url}: {error}") from None

        return np.concatenate(_each(ask, range(0, len(pixels), batch_size), workers) or [np.zeros(0, np.float32)])

    return apply


@dataclass(frozen=True, kw_only=True)
class _Server:
    """A url that is asked until a moment."""

    url: str
    headers: dict[str, str]
    seconds: float

    def ask(self, body: bytes, until: float) -> bytes:
        """Posts, waiting while the server is busy."""
        while True:
            try:
                return self._post(body, until)
            except urllib.error.HTTPError as error:
                with error:
                    said, status, pause = wire.decode_error(error.read(4096)), error.code, error.headers.get("Retry-After")
            if status != 503 or pause is None:
                raise RuntimeError(f"{self.url} answered {status}{': ' + said if said else ''}")
            seconds = _pause(pause)
            if time.monotonic() + seconds >= until:
                raise TimeoutError(f"{self.url} was busy for {self.seconds:g} s{': ' + said if said else ''}")
            time.sleep(seconds)

    def _post(self, body: bytes, until: float) -> bytes:
        late = TimeoutError(f"{self.url} gave no answer within {self.seconds:g} s")
        left = until - time.monotonic()
        if left <= 0:
            raise late
        request = urllib.request.Request(self.url, data=body, headers=self.headers, method="POST")
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=left) as response:
                answer = response.read(_MOST_BYTES + 1)
        except urllib.error.HTTPError:
            raise
        except TimeoutError:
            raise late from None
        except (OSError, http.client.HTTPException) as error:  # an URLError is an OSError
            why = getattr(error, "reason", None) or error
            if isinstance(why, TimeoutError):
                raise late from None
            raise ConnectionError(f"{self.url}: {type(why).__name__}: {why}") from None
        if len(answer) > _MOST_BYTES:
            raise RuntimeError(f"{self.url} answered with more than {_MOST_BYTES >> 20} MiB")
        return answer


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect stays the answer that it is: an error."""

    def redirect_request(self, *arguments: Any, **fields: Any) -> None:
        """None follows."""


def _pause(said: str) -> float:
    """Of `Retry-After`, which may also be a date: then that of a server that does not say."""
    try:
        return max(_LEAST_PAUSE, float(said))
    except ValueError:
        return _PAUSE


def _each(call: Callable[[int], Any], items: Sequence[int], workers: int) -> list[Any]:
    """Calls for every item, `workers` at a time; what waits is dropped after the first failure, which is raised."""
    pool = ThreadPoolExecutor(min(workers, max(1, len(items))))
    futures = [pool.submit(call, item) for item in items]
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
        failed = [future for future in futures if future.done() and not future.cancelled() and future.exception()]
        return [future.result() for future in failed or futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
