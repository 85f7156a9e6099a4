"""The TFDS builder of the embedded data sets: ArrayRecord files, written without TensorFlow.

Imported only where a data set is written: it needs tensorflow_datasets, which needs a second to import.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxdrl.data.embedded import VERSION, EmbeddedSet


class Embedded(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builder of any `EmbeddedSet`: images as PNG, in the order in which they are made."""

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, *, wanted: EmbeddedSet, data_dir: Path) -> None:
        """Keeps the description.

        Args:
            wanted: What to write.
            data_dir: Where.
        """
        self._wanted = wanted
        super().__init__(data_dir=str(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        wanted = self._wanted
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=wanted.image_shape, encoding_format="png"),
                "label": tfds.features.ClassLabel(names=list(wanted.class_names)),
            }
        )
        # `dataset_info_from_configs` and ndarray images would need TensorFlow.
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{wanted.description} Licences: {wanted.licence}",
            license=wanted.licence,
            features=features,
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager
        return {split: self._generate_examples(*part) for split, part in self._wanted.make().items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            buffer = io.BytesIO()
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="png")
            buffer.seek(0)
            yield index, {"image": buffer, "label": int(label)}


def write(wanted: EmbeddedSet, directory: Path) -> Path:
    """Writes a set.

    Args:
        wanted: The set.
        directory: A folder for it alone.

    Returns:
        The folder below it that holds the files.
    """
    tfds.disable_progress_bar()
    builder = Embedded(wanted=wanted, data_dir=directory)
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=str(directory / "downloads"))
    return Path(builder.data_path)
