"""Is a sample of the class that was asked for? Classifiers trained on real images, with nothing of the generator in them."""

import numpy as np
from jaxtyping import Float, Int

from jaxdrl.evaluation import neighbours


def predict(
    train: Float[np.ndarray, "n d"], train_labels: Int[np.ndarray, " n"], test: Float[np.ndarray, "m d"], k: int = 5
) -> Int[np.ndarray, " m"]:
    """k-nearest-neighbour classification.

    Args:
        train: Features with known labels.
        train_labels: Their classes.
        test: Features to classify.
        k: Neighbours that vote; among equal votes the lowest class wins.

    Returns:
        Classes.
    """
    votes = np.asarray(train_labels)[neighbours.nearest(test, train, k)[1]]
    classes = np.unique(train_labels)
    counts = np.stack([(votes == label).sum(axis=1) for label in classes], axis=1)
    return classes[counts.argmax(axis=1)].astype(np.int32)


def accuracy_by_class(predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> dict[int, float]:
    """The share of each class's samples that are taken for it.

    Args:
        predicted: By a classifier.
        labels: What was asked for.

    Returns:
        Class -> share, for the classes among the labels.
    """
    return {int(label): float((predicted[labels == label] == label).mean()) for label in np.unique(labels)}


def nearest_neighbours(
    train: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, " n"],
    test: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, " m"],
    k: int = 5,
) -> float:
    """Accuracy of k-nearest-neighbour classification.

    Args:
        train: Features with known labels.
        train_labels: Their classes.
        test: Features to classify.
        test_labels: The classes they should get.
        k: Neighbours that vote.

    Returns:
        The share that is right.
    """
    return float((predict(train, train_labels, test, k) == test_labels).mean())


class PixelClassifier:
    """A support vector machine on pixels (98 % on the digits), trained on real images."""

    def __init__(self, images: Float[np.ndarray, "n ..."], labels: Int[np.ndarray, " n"], limit: int = 5000) -> None:
        """Trains it.

        Args:
            images: In [-1, 1].
            labels: Their classes.
            limit: At most so many images, evenly spaced, are used.
        """
        from sklearn.svm import SVC

        step = max(1, -(-len(images) // limit))
        flat = np.asarray(images[::step]).reshape(len(images[::step]), -1)
        self._machine = SVC(C=10.0, gamma="scale").fit(flat, labels[::step])

    def predict(self, images: Float[np.ndarray, "n ..."]) -> Int[np.ndarray, " n"]:
        """Classes of images.

        Args:
            images: As in training.

        Returns:
            One class an image.
        """
        return self._machine.predict(np.asarray(images).reshape(len(images), -1))

    def accuracy(self, images: Float[np.ndarray, "n ..."], labels: Int[np.ndarray, " n"]) -> float:
        """The share of images that it takes for their label.

        Args:
            images: In [-1, 1].
            labels: What was asked for.

        Returns:
            A share.
        """
        return float(self._machine.score(np.asarray(images).reshape(len(images), -1), labels))
