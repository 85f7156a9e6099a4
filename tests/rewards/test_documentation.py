"""`docs/rewards.md` is run: its modules, its server, its messages and its table of fields."""

import inspect
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl import rewards
from jaxdrl.rewards import remote, wire
from tests.rewards import served

PAGE = (Path(__file__).parents[2] / "docs/rewards.md").read_text()
LABELS = np.array([0, 1, 7], np.int32)


@pytest.fixture
def modules(monkeypatch):
    """The page's Python blocks that are named as files, imported."""
    monkeypatch.setenv("no_proxy", "*")
    for name, content in re.findall(r"`(my_\w+)\.py`:\n\n```python\n(.*?)```", PAGE, re.DOTALL):
        module = ModuleType(name)
        exec(compile(content, name, "exec"), module.__dict__)
        monkeypatch.setitem(sys.modules, name, module)
    return sys.modules["my_rewards"], sys.modules["my_server"]


def _images():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3))
    return (images / 127.5 - 1).astype(np.float32)


def test_the_modules_are_rewards(modules):
    images = _images()
    traced = rewards.create("traced_function", path="my_rewards:redness", scale=2.0)
    found = jax.jit(rewards.stack([traced]))(images, LABELS)[:, 0]
    np.testing.assert_allclose(found, 2 * (images[..., 0].mean((1, 2)) - images[..., 1:].mean((1, 2, 3))), rtol=1e-4, atol=1e-6)
    assert np.abs(jax.grad(lambda images: traced(images, LABELS).sum())(jnp.asarray(images))).min() > 0
    rows = np.zeros((3, 4, 6, 3), np.float32)
    rows[:, ::2] = 1.0
    stripes = rewards.create("function", path="my_rewards:stripes", classes=(0, 1))
    np.testing.assert_array_equal(stripes(rows, LABELS), np.float32([1, -1, np.nan]))


def test_the_server_is_a_server(modules):
    images, prompts = _images(), ("a red square", "a dog", *["a red ball"] * 6)
    with served.running(modules[1].make(0)) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        far = rewards.create("remote", url=url, prompts=prompts)
        expected = (images[..., 0].mean(axis=(1, 2)) + 1) / 2
        expected[1] = np.nan
        np.testing.assert_allclose(far(images, LABELS), expected, rtol=1e-5)
        with pytest.raises(RuntimeError, match="answered 500: TypeError: 'NoneType' object is not iterable"):
            rewards.create("remote", url=url)(images, LABELS)


def test_the_messages_are_of_the_schema():
    request, answer = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    found = wire.decode_request(request.encode())
    assert found.images.tolist() == [[[[0, 1, 2], [3, 4, 5]]]] and found.prompts == ("a red square",)
    assert wire.decode_scores(answer.encode(), 1, "redness").tolist() == [0.25]
    assert np.isnan(wire.decode_scores(answer.encode(), 1, "aesthetic")).all()


def test_the_config_and_the_command_of_the_page(modules):
    block = re.search(r"posttrain\.rewards = (\{.*?\n\})", PAGE, re.DOTALL)
    given = eval(block.group(1))
    for label, fields in given.items():
        if label != "discriminator":
            rewards.create(fields.pop("name"), label=label, **fields)
    fields = json.loads(re.search(r"--fields='(.*?)'", PAGE).group(1))
    with served.running(served.reward_server.Server(rewards.create("function", **fields))) as server:
        found = rewards.create("remote", url=server.url, field="stripes")(_images(), LABELS)
    np.testing.assert_allclose(found, modules[0].stripes(_images(), LABELS), rtol=1e-4, atol=1e-6)


def test_the_table_of_fields_is_whole():
    table = PAGE[PAGE.index("Fields of `remote`") :]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(inspect.signature(remote.reward).parameters)
