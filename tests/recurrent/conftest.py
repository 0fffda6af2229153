import pytest
import torch


@pytest.fixture
def exact_float32():
    """In TF32 torch's layers and ours would be wrong by the same large amount, and their comparison blunt."""
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.rnn.fp32_precision = before
