r"""A small server of one reward over HTTP, for `create("remote", url=...)`; the schema is `jaxdrl/rewards/wire.py`'s.

    python launch/reward_server.py --reward=jpeg_compressibility --port=8400
    PYTHONPATH=. python launch/reward_server.py --reward=function --fields='{"path": "my_rewards:redness", "label": "redness"}'

POST / scores images by any reward of `jaxdrl.rewards.create` that needs no weights; prompts that are sent are checked and not used, since these
rewards take images and classes. GET /health says that it lives. One request is computed at a time, `--waiting` more wait; beyond
them the answer is 503 with `Retry-After`. An answer is all numbers: where a reward has none although it applies, the request fails.
SIGTERM and Ctrl-C let what was begun finish, for `--grace` seconds. Bound to this machine unless `--host` says otherwise; there is
no encryption: put it behind a proxy that has it, and give `--token_variable`, before others can reach it.
"""

import argparse
import contextlib
import hmac
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from jaxdrl import rewards
from jaxdrl.errors import UserError
from jaxdrl.rewards import supervised, wire

_RETRY_AFTER = 1  # seconds
_SOCKET_SECONDS = 30.0  # between two packets of a client


class Refused(Exception):
    """What a client is told instead of scores."""

    def __init__(self, status: int, message: str) -> None:
        """Keeps both.

        Args:
            status: Of HTTP.
            message: One line.
        """
        super().__init__(message)
        self.status = status


class Server(ThreadingHTTPServer):
    """One reward behind a port; a thread a connection."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        reward: rewards.Reward,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        waiting: int = 16,
        most_bytes: int = 64 << 20,
        most_images: int = 1024,
        token: str = "",
    ) -> None:
        """Binds; `serve_forever` answers.

        Args:
            reward: Any.
            host: Address to bind to.
            port: 0: one that is free, see `url`.
            waiting: Requests that may wait for the one that is computed.
            most_bytes: Of a request.
            most_images: Of a request.
            token: That a client has to send; empty: none.

        Raises:
            OSError: If the port is taken.
        """
        self.reward, self.token = reward, token
        self.most_bytes, self.most_images = most_bytes, most_images
        self._evaluate = rewards.evaluator([reward])
        self._admitted, self._computing = threading.BoundedSemaphore(waiting + 1), threading.Lock()
        self._idle, self.under_way = threading.Condition(), 0
        super().__init__((host, port), Handler)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{self.server_address[0]}:{self.server_address[1]}"

    def score(self, handler: "Handler", length: int) -> bytes:
        """Answers one request.

        Args:
            handler: Of its connection.
            length: Of its body.

        Returns:
            The body of the answer.

        Raises:
            Refused: If it is too large, not of the schema, or fails, or too many wait.
        """
        if length > self.most_bytes:
            handler.drain(length)
            raise Refused(
                413, f"the request has {length} bytes, at most {self.most_bytes} are taken; send fewer images (batch_size)"
            )
        if not self._admitted.acquire(blocking=False):
            handler.drain(length)
            raise Refused(503, "busy: too many requests wait already")
        try:
            return self._scored(handler.rfile.read(length))
        finally:
            self._admitted.release()

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Within it a request is under way, until its answer is sent."""
        with self._idle:
            self.under_way += 1
        try:
            yield
        finally:
            with self._idle:
                self.under_way -= 1
                self._idle.notify_all()

    def _scored(self, body: bytes) -> bytes:
        try:
            request = wire.decode_request(body)
        except wire.SchemaError as error:
            raise Refused(400, str(error)) from None
        if len(request.images) > self.most_images:
            raise Refused(
                413, f"{len(request.images)} images in a request, at most {self.most_images} are taken; lower batch_size"
            )
        images = request.images.astype(np.float32) / np.float32(127.5) - np.float32(1)
        try:
            with self._computing:
                values = self._evaluate(images, request.condition)[:, 0]
            applies = supervised.applies(self.reward, request.condition)
            if self.reward.selective:
                applies &= ~np.isnan(values)
            if not np.isfinite(values[applies]).all():
                raise ValueError(f"no finite value for images {np.flatnonzero(applies & ~np.isfinite(values))[:5].tolist()}")
            return wire.encode_scores({self.reward.name: values})
        except Exception as error:
            raise Refused(500, f"reward {self.reward.name}: {supervised.one_line(error)}") from error

    def finish(self, seconds: float) -> bool:
        """Stops listening, and waits for what was begun.

        Args:
            seconds: At most.

        Returns:
            Whether all was answered.
        """
        self.shutdown()
        self.server_close()
        with self._idle:
            return self._idle.wait_for(lambda: not self.under_way, seconds)


class Handler(BaseHTTPRequestHandler):
    """One connection, with one request."""

    server: Server
    timeout = _SOCKET_SECONDS
    server_version, sys_version = "jaxdrl-rewards", ""

    def do_GET(self) -> None:
        """Health."""
        if self.path != "/health":
            self._send(404, wire.encode_error(f"{self.path} is not here; GET /health, or POST to /"))
            return
        said = {"version": wire.VERSION, "reward": self.server.reward.name, "under_way": self.server.under_way}
        self._send(200, json.dumps(said).encode())

    def do_POST(self) -> None:
        """Scores."""
        with self.server.counted():
            try:
                answer, status = self.server.score(self, self._length()), 200
            except Refused as refused:
                answer, status = wire.encode_error(str(refused)), refused.status
            self._send(status, answer)

    def drain(self, length: int) -> None:
        """Reads and forgets a body: a client that is still sending would not see the answer.

        Args:
            length: Of the body; of a huge one only a part is read.
        """
        left = min(length, 4 * self.server.most_bytes)
        while left > 0:
            found = len(self.rfile.read(min(left, 1 << 16)))
            left = left - found if found else 0

    def _length(self) -> int:
        given = self.headers.get("Content-Length", "")
        if not given.isdigit():
            raise Refused(411, "a request must say its Content-Length")
        wanted, sent = f"Bearer {self.server.token}", self.headers.get("Authorization", "")
        refusal = None
        if self.server.token and not hmac.compare_digest(wanted.encode(), sent.encode()):
            refusal = Refused(401, "the token is missing or wrong; set the reward's token_variable")
        elif self.path not in ("/", "/score"):
            refusal = Refused(404, f"{self.path} is not here; POST to /")
        if refusal is not None:
            self.drain(int(given))
            raise refusal
        return int(given)

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 503:
            self.send_header("Retry-After", str(_RETRY_AFTER))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Only what went wrong is worth a line.

        Args:
            format: Of the line.
            *args: For it; the status is the second.
        """
        if len(args) > 1 and str(args[1])[:1] in "45":
            super().log_message(format, *args)


def made(arguments: argparse.Namespace) -> Server:
    """Makes the server.

    Args:
        arguments: Of the command line.

    Returns:
        A bound server.

    Raises:
        UserError: If the reward or an option is wrong, or the port is taken.
    """
    try:
        fields = json.loads(arguments.fields)
    except ValueError as error:
        raise UserError(f"--fields: not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise UserError("--fields: must be a JSON object, like '{\"quality\": 50}'")
    token = os.environ.get(arguments.token_variable, "").strip() if arguments.token_variable else ""
    if arguments.token_variable and not token:
        raise UserError(f"--token_variable: the environment variable {arguments.token_variable} is not set")
    if arguments.waiting < 0 or arguments.most_megabytes < 1 or arguments.most_images < 1:
        raise UserError("--waiting must be at least 0, --most_megabytes and --most_images at least 1")
    try:
        return Server(
            rewards.create(arguments.reward, **fields),
            host=arguments.host,
            port=arguments.port,
            waiting=arguments.waiting,
            most_bytes=arguments.most_megabytes << 20,
            most_images=arguments.most_images,
            token=token,
        )
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {arguments.host} --port {arguments.port}: {error}; choose another") from error


def main(given: list[str] | None = None) -> int:
    """Serves until it is told to stop.

    Args:
        given: The command line; None: that of the process.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", required=True, help=f"one of {', '.join(rewards.names())}")
    parser.add_argument("--fields", default="{}", help="a JSON object: fields of the reward")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8400, help="0: one that is free")
    parser.add_argument("--waiting", type=int, default=16, help="requests that may wait")
    parser.add_argument("--most_megabytes", type=int, default=64, help="of a request")
    parser.add_argument("--most_images", type=int, default=1024, help="of a request")
    parser.add_argument("--token_variable", default="", help="environment variable with the token that clients have to send")
    parser.add_argument("--grace", type=float, default=10.0, help="seconds for what was begun, when it is stopped")
    arguments = parser.parse_args(given)
    try:
        server = made(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    print(f"serving {server.reward.name} at {server.url}", flush=True)
    stop.wait()
    whole = server.finish(arguments.grace)
    print("stopped" if whole else f"stopped; {server.under_way} requests were not finished in {arguments.grace:g} s", flush=True)
    return 0


if __name__ == "__main__":
    # Not sys.exit: a reward that hangs in a thread of its own must not keep the process.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
