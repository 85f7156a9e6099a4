"""Images with labels: TFDS builders written as ArrayRecord, read at random with Grain."""

from jaxdrl.data.pipeline import Batches, batches, load_arrays, to_float, to_uint8
from jaxdrl.data.sources import DatasetSummary, Source, open_split, prepare

__all__ = ["Batches", "DatasetSummary", "Source", "batches", "load_arrays", "open_split", "prepare", "to_float", "to_uint8"]
