"""Is a sample of the class that was asked for? Classifiers trained on real images, with nothing of the generator in them."""

import numpy as np
from jaxtyping import Float, Int


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
    from sklearn.neighbors import KNeighborsClassifier

    return float(KNeighborsClassifier(k).fit(train, train_labels).score(test, test_labels))


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

    def accuracy(self, images: Float[np.ndarray, "n ..."], labels: Int[np.ndarray, " n"]) -> float:
        """The share of images that it takes for their label.

        Args:
            images: In [-1, 1].
            labels: What was asked for.

        Returns:
            A share.
        """
        return float(self._machine.score(np.asarray(images).reshape(len(images), -1), labels))
