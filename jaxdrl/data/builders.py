"""The embedded data sets as TFDS builders, written as ArrayRecord without TensorFlow.

Imported only where a data set is prepared or opened: it needs tensorflow_datasets.
"""

import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxdrl.data import digits, patches, synthetic


class Embedded(tfds.core.GeneratorBasedBuilder):
    """One builder for all embedded sets: what differs is the function that makes the arrays."""

    VERSION = tfds.core.Version("1.0.0")
    name = "jaxdrl_embedded"

    def __init__(self, *, settings, **kwargs):
        """Keeps the settings.

        Args:
            settings: `config.data`.
            **kwargs: For TFDS (`data_dir`, `file_format`).
        """
        self._settings = settings
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        names = class_names(self._settings)
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self._settings.name}; see jaxdrl/data/{self._settings.name}.py for source and licences",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=tuple(self._settings.image_shape), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=names),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {split: self._generate_examples(*part) for split, part in arrays(self._settings).items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray):
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            buffer = io.BytesIO()
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="png")
            yield index, {"image": io.BytesIO(buffer.getvalue()), "label": int(label)}


def class_names(settings) -> list[str]:
    """Names of the classes of an embedded set.

    Args:
        settings: `config.data`.

    Returns:
        A name a class.
    """
    known = {"digits": digits.CLASS_NAMES, "patches": patches.PICTURES}
    return list(known.get(settings.name, [str(label) for label in range(settings.num_classes)]))


def arrays(settings) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """All images of an embedded set.

    Args:
        settings: `config.data`.

    Returns:
        split -> (images, labels).
    """
    if settings.name == "digits":
        return digits.splits(settings.split_seed, settings.validation_fraction)
    shape = tuple(settings.image_shape)
    if settings.name == "patches":
        return patches.splits(settings.split_seed, settings.examples_per_class, shape)
    return synthetic.splits(settings.split_seed, settings.examples_per_class, shape, settings.num_classes)


def write(settings, directory: Path) -> None:
    """Writes an embedded set.

    Args:
        settings: `config.data`.
        directory: Its folder; made.
    """
    tfds.disable_progress_bar()
    builder = Embedded(settings=settings, data_dir=str(directory), file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(verify_ssl=False, compute_stats="skip"))


def open_source(directory: Path, split: str):
    """Opens a written set for random access.

    Args:
        directory: As given to `write`.
        split: "train", "validation" or "test".

    Returns:
        A TFDS data source of {"image", "label"}.
    """
    version = next(directory.glob("jaxdrl_embedded/*"))
    return tfds.builder_from_directory(str(version)).as_data_source(split=split)
