"""Every published size against its authors' code: `JAXDRL_OFFICIAL=DIR pytest -m published`, DIR as for `tests/golden/make.py`."""

import os
from pathlib import Path

import pytest

from jaxdrl import backbones
from tests.golden import published


@pytest.mark.published
@pytest.mark.parametrize("model", backbones.PUBLISHED)
def test_published_sizes_are_the_authors(model):
    pytest.importorskip("torch")
    if "JAXDRL_OFFICIAL" not in os.environ:
        pytest.skip("JAXDRL_OFFICIAL names no folder with the authors' repositories")
    result = published.compare(model, Path(os.environ["JAXDRL_OFFICIAL"]))
    assert result.same_count and result.round_trip
    assert result.output < 1e-4 and result.gradient < 1e-4
