"""The class head beside scikit-learn's, on the digits, and its probability as a reward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from jaxdrl import rewards
from jaxdrl.data import digits, to_float
from jaxdrl.rewards import class_confidence


@pytest.fixture(scope="module")
def parts():
    """Pixels of the digits as features."""
    return {name: (to_float(images), labels) for name, (images, labels) in digits.splits(0, 0.1).items()}


@pytest.fixture(scope="module")
def head(parts):
    images, labels = parts["train"]
    return class_confidence.train(images.reshape(len(images), -1), labels, 10)


def _pixels(images):
    return images.reshape(len(images), -1)


def test_digits_are_recognised(parts, head):
    images, labels = parts["test"]
    found = np.asarray(class_confidence.logits(head, jnp.asarray(_pixels(images)))).argmax(axis=1)
    assert (found == labels).mean() > 0.94
    again = class_confidence.train(_pixels(parts["train"][0]), parts["train"][1], 10)
    assert all(np.array_equal(head[name], again[name]) for name in ("kernel", "bias"))


def test_the_head_is_scikit_learns(parts):
    """The same convex problem: C = 1 / (n l2) on standardised features."""
    images, labels = parts["train"]
    kept = labels < 4
    features, labels = _pixels(images[kept]).astype(np.float64), labels[kept]
    head = class_confidence.train(features, labels, 4, l2=1e-2)
    spread = features.std(axis=0)
    machine = LogisticRegression(C=1 / (len(features) * 1e-2), tol=1e-10, max_iter=2000)
    machine.fit((features - features.mean(axis=0)) / np.where(spread > 0, spread, 1), labels)
    test = _pixels(parts["test"][0])[:200]
    expected = machine.predict_proba((test - features.mean(axis=0)) / np.where(spread > 0, spread, 1))
    found = jax.nn.softmax(class_confidence.logits(head, jnp.asarray(test)))
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_the_reward_is_the_probability_of_the_asked_class(parts, head):
    images, labels = parts["test"][0][:50], parts["test"][1][:50].astype(np.int32)
    scores = _pixels(images).astype(np.float64) @ head["kernel"] + head["bias"]
    expected = np.exp(scores - scores.max(1, keepdims=True))
    expected = (expected / expected.sum(1, keepdims=True))[np.arange(50), labels]
    chosen = [
        rewards.create("class_confidence", head=head, features=_pixels),
        rewards.create("class_confidence", head=head, features=_pixels, log=False, label="probability"),
    ]
    found = rewards.evaluator(chosen)(images, labels)
    np.testing.assert_allclose(found, np.stack([np.log(expected), expected], axis=1), rtol=1e-3, atol=1e-5)
    assert np.all(found[:, 0] <= 0) and found[:, 1].mean() > 0.8
    wrong = rewards.evaluator(chosen)(images, (labels + 1) % 10)
    assert wrong[:, 1].mean() < 0.1
    nobody = rewards.evaluator(chosen)(images, np.where(labels % 2, 10, -1).astype(np.int32))
    assert np.isnan(nobody).all()
    gradient = jax.grad(lambda images: chosen[0](images, labels).sum())(jnp.asarray(images))
    climbed = rewards.evaluator(chosen)(images + 1e-3 * np.asarray(gradient), labels)
    assert np.all(climbed[:, 0] >= found[:, 0]) and climbed[:, 0].mean() > found[:, 0].mean()


def test_labels_that_do_not_fit_are_refused(parts):
    images, labels = parts["train"]
    with pytest.raises(ValueError, match=r"missing: \[10\], found 0 .. 9"):
        class_confidence.train(_pixels(images), labels, 11)
    with pytest.raises(ValueError, match=r"labels must be 0 .. 8"):
        class_confidence.train(_pixels(images), labels, 9)
    with pytest.raises(ValueError, match="did not converge in 3 steps"):
        class_confidence.train(_pixels(images), labels, 10, max_steps=3)
