"""Of the kernels' tests alone."""

import pytest
import torch


@pytest.fixture
def interpreted():
    """Of tests that Triton's interpreter runs."""
    if torch.cuda.is_available():
        pytest.skip("compiled, where there is a GPU")
