import os

import pytest
import torch


@pytest.fixture(scope="session")
def device():
    """The GPU; ONEPEACE_GPU_TESTS=cpu tries the tests themselves where there is none."""
    return torch.device(os.environ.get("ONEPEACE_GPU_TESTS", "cuda"))


@pytest.fixture(autouse=True)
def _no_tensor_float32():
    """Matrix products of float32 keep its precision, with which golden numbers are compared."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
