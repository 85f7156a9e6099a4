"""Rewards over HTTP: the schema on both sides, the reference server, back-pressure, and failures in one line."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from jaxdrl import rewards
from jaxdrl.errors import UserError
from jaxdrl.rewards import pixels, remote, supervised, wire
from tests.rewards import served

LABELS = np.array([3, 0, 1, 2, 1], np.int32)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def _images(channels=3, count=5):
    return np.random.default_rng(0).uniform(-1.1, 1.1, (count, 8, 6, channels)).astype(np.float32)


def _server(name="jpeg_compressibility", *, classes=None, options=None, **fields):
    return served.reward_server.Server(rewards.create(name, classes=classes, **fields), **(options or {}))


def _scores(*values, **named):
    return 200, {}, json.dumps({"version": 1, "scores": {"r": list(values)} | named}).encode()


def _sevens(body):
    count = len(json.loads(body)["condition"])
    return _scores(*[0] * count, s=[7] * count)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_as_bytes(channels):
    images = _images(channels)
    found = pixels.to_bytes(images)
    np.testing.assert_allclose(found / 127.5 - 1, np.clip(images, -1, 1), atol=0.5 / 127.5 + 1e-6)
    np.testing.assert_array_equal(pixels.to_bytes(found.astype(np.float32) / np.float32(127.5) - 1), found)
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(pixels.to_bytes(every.astype(np.float32) / np.float32(127.5) - np.float32(1)), every)
    coloured = pixels.to_bytes(images, colours=True)
    assert coloured.shape[-1] == 3 and np.array_equal(coloured[..., :channels], found)


@pytest.mark.parametrize("form", wire.FORMATS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_request_comes_back_as_it_was(form, channels):
    sent = wire.Request(pixels.to_bytes(_images(channels)), LABELS, ("a", 'b "c"', "ü", "", "d"))
    found = wire.decode_request(wire.encode_request(sent, form))
    np.testing.assert_array_equal(found.images, sent.images)
    np.testing.assert_array_equal(found.condition, LABELS)
    assert found.prompts == sent.prompts
    assert wire.decode_request(wire.encode_request(sent._replace(prompts=None), form)).prompts is None


def test_what_the_documentation_of_the_schema_says():
    """Written by hand, not by the code under test."""
    block = {"shape": [2, 1, 2, 1], "uint8": base64.b64encode(bytes([1, 2, 3, 255])).decode()}
    found = wire.decode_request(json.dumps({"version": 1, "images": block, "condition": [4, 5]}).encode())
    assert found.images.tolist() == [[[[1], [2]]], [[[3], [255]]]] and found.condition.tolist() == [4, 5]
    said = json.loads(wire.encode_request(found, "uint8"))
    assert said == {"version": 1, "images": block, "condition": [4, 5]}
    assert json.loads(wire.encode_scores({"a": np.array([1.5, np.nan])})) == {"version": 1, "scores": {"a": [1.5, None]}}
    np.testing.assert_array_equal(wire.decode_scores(b'{"version": 1, "scores": {"a": [1, null]}}', 2), [1, np.nan])
    with pytest.raises(wire.SchemaError, match="scores of a are not finite"):
        wire.encode_scores({"a": np.array([np.inf])})


_BLOCK = {"shape": [1, 1, 1, 1], "uint8": "AQ=="}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "must be a JSON object with version 1, got version 2"),
        ({"images": []}, "at least one image"),
        ({"images": ["AQ=="]}, r"images\[0\] is not a PNG file"),
        ({"images": ["?"]}, r"images\[0\] is not base64"),
        ({"images": {"shape": [1, 1, 1, 2], "uint8": "AQI="}}, r"images.shape must be \[n, h, w, 1 or 3\]"),
        ({"images": {"shape": [1, 1, 3, 1], "uint8": "AQI="}}, r"has 2 bytes, shape \[1, 1, 3, 1\] asks for 3"),
        ({"images": {"shape": [1, 1, 3, True], "uint8": "AQI="}}, "images.shape"),
        ({"condition": [1, 2]}, "condition must be a list of 1 integers"),
        ({"condition": [1.0]}, "condition must be a list of 1 integers"),
        ({"condition": [2**40]}, "32 bits"),
        ({"prompts": "x"}, "prompts must be a list of 1 strings"),
    ],
)
def test_requests_are_checked(change, said):
    body = {"version": 1, "images": _BLOCK, "condition": [1]}
    wire.decode_request(json.dumps(body).encode())
    with pytest.raises(wire.SchemaError, match=said) as raised:
        wire.decode_request(json.dumps(body | change).encode())
    assert "\n" not in str(raised.value)


def test_pictures_of_another_kind_or_size():
    from PIL import Image

    def png(mode, size):
        import io

        file = io.BytesIO()
        Image.new(mode, size).save(file, format="PNG")
        return base64.b64encode(file.getvalue()).decode()

    for images, said in (([png("RGBA", (2, 2))], "got RGBA"), ([png("L", (2, 2)), png("L", (3, 2))], "of one size")):
        body = {"version": 1, "images": images, "condition": [0] * len(images)}
        with pytest.raises(wire.SchemaError, match=said):
            wire.decode_request(json.dumps(body).encode())


@pytest.mark.parametrize(
    ("answer", "field", "said"),
    [
        (b"<html>", "", "the answer is not JSON"),
        (b'{"scores": {"a": [1]}}', "", "version 1, got version None"),
        (b'{"version": 1, "scores": [1]}', "", "scores must be an object"),
        (b'{"version": 1, "scores": {"a": [1]}}', "", "scores must be 2 numbers, one an image; got 1"),
        (b'{"version": 1, "scores": {"a": [1, "2"]}}', "", "numbers or null, got '2'"),
        (b'{"version": 1, "scores": {"a": [1, true]}}', "", "numbers or null, got 'True'"),
        (b'{"version": 1, "scores": {"a": [1, NaN]}}', "", "NaN is no number of JSON; null says"),
        (b'{"version": 1, "scores": {"a": [1, 2]}}', "b", "no score 'b': it has a"),
        (b'{"version": 1, "scores": {"a": [1, 2], "b": [1, 2]}}', "", "field does not say which: it has a, b"),
    ],
)
def test_answers_are_checked(answer, field, said):
    with pytest.raises(wire.SchemaError, match=said):
        wire.decode_scores(answer, 2, field)
    with served.running(served.Told(lambda *_: (200, {}, answer))) as server:
        asked = rewards.create("remote", url=server.url, field=field)
        with pytest.raises(ValueError, match=f"{server.url}: .*{said}"):
            asked(_images(count=2), LABELS[:2])


@pytest.mark.parametrize("form", wire.FORMATS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_served_reward_is_the_reward(form, channels):
    images = _images(channels)
    with served.running(_server(classes=(0, 1, 3), quality=60)) as server:
        asked = rewards.create("remote", url=server.url, form=form, batch_size=2, workers=3, scale=2.0)
        found = asked(images, LABELS)
    expected = 2 * rewards.create("jpeg_compressibility", quality=60)(images, LABELS)
    np.testing.assert_allclose(found, np.where(LABELS == 2, np.nan, expected), rtol=1e-6)
    assert asked(images[:0], LABELS[:0]).shape == (0,)


def test_a_traced_reward_is_served_too():
    images = pixels.to_bytes(_images()).astype(np.float32) / np.float32(127.5) - np.float32(1)
    with served.running(_server("brightness")) as server:
        found = rewards.create("remote", url=f"{server.url}/score")(images, LABELS)
    np.testing.assert_allclose(found, rewards.create("brightness")(images, LABELS), rtol=1e-5)


def test_what_is_sent(monkeypatch):
    monkeypatch.setenv("A_TOKEN", " secret\n")
    with served.running(served.Told(lambda body, _: _sevens(body))) as server:
        fields = {"token_variable": "A_TOKEN", "prompts": ("a", "b", "c", "d"), "field": "s"}
        assert rewards.create("remote", url=server.url, **fields)(_images(), LABELS).tolist() == [7] * 5
        ((body, headers),) = server.asked
        assert headers["Authorization"] == "Bearer secret" and headers["Content-Type"] == "application/json"
        assert wire.decode_request(body).prompts == ("d", "a", "b", "c", "b")
        rewards.create("remote", url=server.url, batch_size=2, **fields)(_images(), LABELS)
        requests = [wire.decode_request(body) for body, _ in server.asked[1:]]
        assert sorted(len(request.images) for request in requests) == [1, 2, 2]
        for request in requests:
            assert request.prompts == tuple("abcd"[label] for label in request.condition)
        with pytest.raises(ValueError, match="prompts has 2 entries, none for class 3"):
            rewards.create("remote", url=server.url, prompts=("a", "b"))(_images(), LABELS)
        assert len(server.asked) == 4
    with served.running(_server(options={"token": "secret"})) as server:
        assert np.isfinite(rewards.create("remote", url=server.url, token_variable="A_TOKEN")(_images(), LABELS)).all()
        with pytest.raises(RuntimeError, match="answered 401: the token is missing or wrong"):
            rewards.create("remote", url=server.url)(_images(), LABELS)


def test_at_most_so_many_requests_are_under_way():
    """Answers take long enough for all that may be to be there; batches come back in order."""
    seen, here, lock = [], [0], threading.Lock()

    def answer(body, _):
        labels = json.loads(body)["condition"]
        with lock:
            here[0] += 1
            seen.append(here[0])
        time.sleep(0.08)
        with lock:
            here[0] -= 1
        return _scores(*labels)

    with served.running(served.Told(answer)) as server:
        labels = np.arange(6, dtype=np.int32)
        found = rewards.create("remote", url=server.url, batch_size=1, workers=3)(_images(count=6), labels)
    assert found.tolist() == labels.tolist() and max(seen) == 3 and len(seen) == 6


def test_a_busy_server_is_asked_again_in_time():
    busy = [(503, {"Retry-After": "0"}, b""), (503, {"Retry-After": "0.06"}, b"")]
    with served.running(served.Told(lambda *_: busy.pop() if busy else _scores(1, 2))) as server:
        began = time.monotonic()
        assert rewards.create("remote", url=server.url)(_images(count=2), LABELS[:2]).tolist() == [1, 2]
        assert len(server.asked) == 3 and time.monotonic() - began >= 0.11
    never = (503, {"Retry-After": "9"}, wire.encode_error("full"))
    with served.running(served.Told(lambda *_: never)) as server:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=f"{server.url} was busy for 3 s: full"):
            rewards.create("remote", url=server.url, timeout_seconds=3.0)(_images(), LABELS)
        assert time.monotonic() - began < 2 and len(server.asked) == 1  # no pause that is too long
    assert remote._pause("Fri, 31 Dec 1999 23:59:59 GMT") == 1.0


def test_failures_name_the_url():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=rf"{url}: ConnectionRefusedError: .*refused"):
            rewards.create("remote", url=url)(_images(), LABELS)
    answers = {
        "answered 500: the network melted": (500, {}, wire.encode_error("the network\nmelted")),
        "answered 503: down": (503, {}, b"down"),  # no Retry-After: it is not asked again here
        "answered 302": (302, {"Location": "http://127.0.0.1:1/"}, b""),
    }
    for said, answer in answers.items():
        with served.running(served.Told(lambda *_, answer=answer: answer)) as server:
            with pytest.raises(RuntimeError, match=f"{server.url} {said}$"):
                rewards.create("remote", url=server.url)(_images(), LABELS)
            assert len(server.asked) == 1


def test_a_server_that_hangs_or_hangs_up():
    release = threading.Event()
    with served.running(served.Told(lambda *_: release.wait(10) and _scores(1))) as server:
        with pytest.raises(TimeoutError, match=f"{server.url} gave no answer within 0.1 s"):
            rewards.create("remote", url=server.url, timeout_seconds=0.1)(_images(count=1), LABELS[:1])
        release.set()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        threading.Thread(target=lambda: listening.accept()[0].close(), daemon=True).start()
        with pytest.raises(ConnectionError, match=rf"{url}: (RemoteDisconnected|ConnectionResetError|BrokenPipeError)"):
            rewards.create("remote", url=url)(_images(), LABELS)


def test_after_a_failure_nothing_more_is_asked():
    with served.running(served.Told(lambda *_: (500, {}, b"no"))) as server:
        with pytest.raises(RuntimeError, match="answered 500: no"):
            rewards.create("remote", url=server.url, batch_size=1, workers=1)(_images(), LABELS)
        time.sleep(0.1)
        assert len(server.asked) <= 2


def test_supervised_asks_a_dead_server_again():
    answers = [(500, {}, b"no"), (500, {}, b"no"), _scores(1, None), _scores(None, None)]
    settings = supervised.Settings(timeout_seconds=5.0, retries=2, backoff_seconds=0.0)
    with served.running(served.Told(lambda *_: answers.pop(0))) as server:
        patient = supervised.Supervised(rewards.create("remote", url=server.url), settings)
        outcome = patient(_images(count=2), LABELS[:2])
        assert outcome.error == "" and len(server.asked) == 3
        np.testing.assert_array_equal(outcome.values, [1, np.nan])
        assert patient(_images(count=2), LABELS[:2]).error == ""  # it applies to neither, and has said so
    assert patient(_images(), LABELS).error.startswith(f"ConnectionError: {server.url}")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"url": "localhost:80"}, "url: 'localhost:80' must be http://HOST"),
        ({"url": "http://me:pw@host"}, "without a password"),
        ({"batch_size": 0}, r"batch_size \(0\)"),
        ({"workers": 0}, r"workers \(0\)"),
        ({"timeout_seconds": 0.0}, "timeout_seconds above 0"),
        ({"form": "jpeg"}, "must be one of png, uint8"),
        ({"token_variable": "NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE is not set"),
        ({"urls": "x"}, r"unknown fields \['urls'\].*batch_size, workers"),
    ],
)
def test_fields_are_checked(fields, said):
    with pytest.raises(UserError, match=said):
        rewards.create("remote", **{"url": "http://localhost:1"} | fields)


def _post(url, body, **headers):
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.loads(response.read()), response.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read()), error.headers


def test_the_server_refuses_in_one_line(capfd):
    good = wire.encode_request(wire.Request(pixels.to_bytes(_images()), LABELS))
    options = {"most_bytes": len(good), "most_images": 4}
    with served.running(_server(options=options)) as server:
        for url, body, status, said in (
            (server.url, b"{}", 400, "version 1, got version None"),
            (server.url, good, 413, "5 images in a request, at most 4"),
            (server.url, good + b" ", 413, "send fewer images"),
            (server.url + "/elsewhere", good, 404, "POST to /"),
        ):
            found, answer, headers = _post(url, body)
            assert found == status and said in answer["error"] and answer["version"] == 1 and "Retry-After" not in headers
        with urllib.request.urlopen(f"{server.url}/health", timeout=10) as response:
            assert json.loads(response.read()) == {"version": 1, "reward": "jpeg_compressibility", "under_way": 0}
    said = capfd.readouterr().err
    assert said.count('" 413 ') == 2 and "health" not in said


def _reward(apply, **fields):
    return rewards.Reward(name="odd", apply=apply, traced=False, **fields)


def test_a_reward_that_fails_on_the_server():
    cases = {
        "ValueError: out of paint": lambda images, condition: (_ for _ in ()).throw(ValueError("out of paint")),
        r"no finite value for images \[1, 2\]": lambda images, condition: np.float32([1, np.nan, np.inf, 0, 0]),
    }
    for said, apply in cases.items():
        with served.running(served.reward_server.Server(_reward(apply))) as server:
            with pytest.raises(RuntimeError, match=f"answered 500: reward odd: .*{said}"):
                rewards.create("remote", url=server.url)(_images(), LABELS)
    apply = lambda images, condition: np.float32([1, np.nan, 2, 3, 4])  # noqa: E731
    with served.running(served.reward_server.Server(_reward(apply, selective=True))) as server:
        np.testing.assert_array_equal(rewards.create("remote", url=server.url)(_images(), LABELS), [1, np.nan, 2, 3, 4])


def test_a_full_server_says_when_to_come_again():
    began, release = threading.Event(), threading.Event()

    def apply(images, condition):
        began.set()
        release.wait(10)
        return np.zeros(len(images))

    body = wire.encode_request(wire.Request(pixels.to_bytes(_images()), LABELS))
    with served.running(served.reward_server.Server(_reward(apply), waiting=0)) as server:
        answers = []
        thread = threading.Thread(target=lambda: answers.append(_post(server.url, body)[0]))
        thread.start()
        assert began.wait(10)
        status, answer, headers = _post(server.url, body)
        assert status == 503 and headers["Retry-After"] == "1" and answer["error"].startswith("busy")
        release.set()
        thread.join()
        assert answers == [200] and _post(server.url, body)[0] == 200


def test_what_was_begun_is_finished():
    began, release = threading.Event(), threading.Event()

    def apply(images, condition):
        began.set()
        release.wait(10)
        return np.ones(len(images))

    server, answers = served.reward_server.Server(_reward(apply)), []
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    asked = rewards.create("remote", url=server.url)
    thread = threading.Thread(target=lambda: answers.append(asked(_images(), LABELS).tolist()))
    thread.start()
    assert began.wait(10)
    threading.Timer(0.1, release.set).start()
    assert server.finish(10) and server.under_way == 0
    thread.join()
    assert answers == [[1] * 5]
    with pytest.raises(ConnectionError):
        asked(_images(), LABELS)


def test_the_command_line_is_checked(capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for options, said in (
            (["--reward=sparkle"], "'sparkle' is unknown"),
            (["--reward=discriminator"], "missing fields ['features', 'params']"),
            (["--reward=brightness", "--fields=x"], "--fields: not JSON"),
            (["--reward=brightness", "--fields=[]"], "--fields: must be a JSON object"),
            (["--reward=brightness", "--token_variable=NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE is not set"),
            (["--reward=brightness", "--waiting=-1"], "--waiting must be at least 0"),
            (["--reward=brightness", f"--port={port}"], f"--port {port}: "),
        ):
            assert served.reward_server.main(options) == 2
            error = capsys.readouterr().err
            assert said in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.slow
def test_the_server_as_a_program():
    """Started by its documented command; SIGTERM ends it with 0."""
    command = [sys.executable, str(served.SCRIPT), "--reward=jpeg_compressibility", "--port=0", '--fields={"quality": 60}']
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            line = process.stdout.readline()
            url = line.split(" at ")[1].strip()
            found = rewards.create("remote", url=url)(_images(), LABELS)
            process.send_signal(signal.SIGTERM)
            assert process.stdout.read() == "stopped\n" and process.wait(20) == 0
        finally:
            process.kill()
    np.testing.assert_allclose(found, rewards.create("jpeg_compressibility", quality=60)(_images(), LABELS), rtol=1e-6)
