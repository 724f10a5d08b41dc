import os
import tempfile

# Also of the processes that tests start. The models here are small, and two threads that wait for each other at every
# operation make a test ten times slower where another process takes a core.
os.environ["OMP_NUM_THREADS"] = "1"

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from support.random_model import save_random_model
from support.samples import copy_samples

import onepeace
from onepeace.cli import main
from onepeace.embed import embedder

ROOT = Path(__file__).resolve().parents[1]

# What tests keep is not mixed with what whoever runs them has, also by the processes that tests start.
_CACHE = tempfile.TemporaryDirectory(prefix="onepeace-tests-")
os.environ["ONEPEACE_CACHE"] = _CACHE.name


def pytest_collection_modifyitems(items):
    # The files that take longest first, so that no process is left alone with one at the end.
    items.sort(key=lambda item: item.path.parent.name not in ("tests", "train", "recipes", "export"))
    has_gpu = torch.cuda.is_available() or "ONEPEACE_GPU_TESTS" in os.environ
    for item in items:
        if "shared" in item.fixturenames:
            item.add_marker("shared")
        if item.get_closest_marker("gpu") and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _same_start_for_every_test():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture(scope="session")
def samples(tmp_path_factory) -> Path:
    """The sample pictures and sounds of the repository, named by what they show."""
    return copy_samples(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """A folder beside the checkout (or $ONEPEACE_SHARED) with data too large for the repository."""
    path = os.environ.get("ONEPEACE_SHARED")
    folder = Path(path or ROOT.parent / "shared")
    if not folder.is_dir():
        if path:
            pytest.fail(f"ONEPEACE_SHARED={path} is not a folder")
        pytest.skip("needs the folder ../shared beside the checkout (or $ONEPEACE_SHARED)")
    return folder


@pytest.fixture(scope="session")
def tiny():
    """The bundled model."""
    return onepeace.load("tiny")


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory) -> Path:
    """The folder of a very small model whose weights are random."""
    return save_random_model(tmp_path_factory.mktemp("random") / "model")


@pytest.fixture(scope="session")
def model(random_folder):
    """That model. Who changes it puts it back."""
    return onepeace.load(random_folder, device="cpu")


@pytest.fixture
def loaded_once(random_folder, model, monkeypatch):
    """The folder of that model is not read again."""
    load = embedder.load

    def load_others(name, **options):
        return model if str(name) == str(random_folder) else load(name, **options)

    monkeypatch.setattr(embedder, "load", load_others)


@pytest.fixture
def quick_finetuning(monkeypatch):
    """Fine-tuning computes one view of frozen stems in place of four."""
    monkeypatch.setattr("onepeace.finetune.recipe.STEM_VIEWS", 1)


@pytest.fixture
def command(random_folder, capsys):
    """Runs a command in this process, with that model unless told another: (exit code, stdout, stderr)."""

    def run(*arguments, model=random_folder):
        arguments = (*arguments, "--model", model, "--device", "cpu")
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run
