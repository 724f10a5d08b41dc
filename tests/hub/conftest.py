from pathlib import Path

import pytest
import torch
from support.hub_layouts import cfg, released, small_vocabulary, wrapper

from onepeace.hub.weights import convert


@pytest.fixture(scope="module")
def bpe(tmp_path_factory) -> Path:
    return small_vocabulary(tmp_path_factory.mktemp("bpe") / "files")


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """The released pretraining layout."""
    path = tmp_path / "one-peace.pt"
    torch.save(wrapper(released(), cfg()), path)
    return path


@pytest.fixture
def convert_tensors(tmp_path, bpe):
    """Converts tensors to the folder "out"; with settings, from a trainer's file."""

    def run(tensors, settings=None, name="checkpoint.pt", **options):
        content = {"model": tensors} if settings is None else wrapper(tensors, settings)
        torch.save(content, tmp_path / name)
        return convert(tmp_path / name, tmp_path / "out", bpe=bpe, **options)

    return run
