"""Every published encoder against transformers: `pytest -m published tests/encoders`."""

import pytest

from jaxdrl.encoders.published import PUBLISHED
from tests.golden import published_encoders


@pytest.mark.published
@pytest.mark.parametrize("model", [name for name in PUBLISHED if name not in ("inception-v3-fid", "dinov3-vit7b16")])
def test_published_sizes_are_transformers(model):
    pytest.importorskip("transformers")
    result = published_encoders.compare(model)
    assert result.output < 1e-4 and result.gradient < 1e-4
