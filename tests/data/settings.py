"""Settings and data sets that the tests of this folder share."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxdrl import config


def settings(name="digits", **changes):
    data = config.default().data
    data.update(name=name, examples_per_class=20)
    data.update(**changes)
    return data


class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set as TFDS's own are: pictures of given sizes, train, validation and a test split without labels."""

    VERSION = tfds.core.Version("3.0.0")

    def __init__(self, *, sizes, labelled_test, image_shape, **kwargs):
        self._sizes, self._labelled_test, self._image_shape = sizes, labelled_test, image_shape
        super().__init__(**kwargs)

    def _info(self):
        features = {
            "file_name": tfds.features.Text(),
            "image": tfds.features.Image(shape=self._image_shape, encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["cat", "dog", "emu"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split, count) for split, count in self._sizes.items()}

    def _generate_examples(self, split, count):
        rng = np.random.default_rng(count)
        for number in range(count):
            shape = tuple(side or 20 + number % 7 for side in self._image_shape)
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(buffer, format="png")
            buffer.seek(0)
            withheld = split == "test" and not self._labelled_test
            yield number, {"file_name": str(number), "image": buffer, "label": -1 if withheld else number % 3}


def write_pictures(directory, *, sizes, labelled_test=True, image_shape=(8, 8, 3), file_format="array_record"):
    builder = Pictures(
        sizes=sizes, labelled_test=labelled_test, image_shape=image_shape, data_dir=str(directory), file_format=file_format
    )
    builder.download_and_prepare(download_dir=str(directory / "downloads"))
    return builder
