from pathlib import Path

import pytest
import torch
from support.hub_layouts import (
    cfg,
    released,
    small_vocabulary,
    wrapper,
)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory) -> Path:
    return small_vocabulary(tmp_path_factory.mktemp("bpe") / "files")


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """The released pretraining layout."""
    path = tmp_path / "one-peace.pt"
    torch.save(wrapper(released(), cfg()), path)
    return path
