"""Images with labels: TFDS builders written as ArrayRecord, read at random with Grain."""

from jaxdrl.data.classes import names as class_names
from jaxdrl.data.images import to_float, to_uint8
from jaxdrl.data.pipeline import Batches, batches
from jaxdrl.data.sources import DatasetSummary, Source, load_arrays, open_split, prepare

__all__ = [
    "Batches",
    "DatasetSummary",
    "Source",
    "batches",
    "class_names",
    "load_arrays",
    "open_split",
    "prepare",
    "to_float",
    "to_uint8",
]
