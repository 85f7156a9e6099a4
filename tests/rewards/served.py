"""Servers for tests: the reference one, and one that answers what it is told to."""

import contextlib
import importlib.util
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "launch/reward_server.py"


def module():
    spec = importlib.util.spec_from_file_location("reward_server", SCRIPT)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


reward_server = module()


@contextlib.contextmanager
def running(server):
    """Until the end of the block; a port that the system chose."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown(), server.server_close(), thread.join()


class Told(ThreadingHTTPServer):
    """`answer(body, headers)` gives (status, headers, body); what was asked is kept."""

    daemon_threads = True

    def __init__(self, answer):
        self.answer, self.asked = answer, []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/ask"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((body, dict(self.headers)))
        status, headers, answer = self.server.answer(body, self.headers)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # a client that has gone
            self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, *arguments):
        pass
