"""A folder that holds only what its model does not share with another one."""

import pytest
import torch
from safetensors.torch import load_file
from support.small_models import small_model
from support.training import assert_same_tensors

from onepeace.config import Config
from onepeace.errors import UserError
from onepeace.hub import weights
from onepeace.hub.weights import convert, describe

HEAD = {"pets": {"kind": "classifier", "on": "image", "num_classes": 5}}


@pytest.fixture
def base(tmp_path):
    module = small_model("image")
    return weights.save(tmp_path / "base", module, Config(module.config), dtype="float16")


@pytest.fixture
def whole(tmp_path, base):
    """The base's model, in float32, with a head of its own."""
    module = small_model("image", heads=HEAD)
    tensors = weights.load(base, dtype=torch.float32).state_dict()
    module.load_state_dict(tensors, strict=False)
    return weights.save(tmp_path / "whole", module, Config(module.config))


@pytest.fixture
def small(tmp_path, base, whole):
    return convert(whole, tmp_path / "small", base=str(base))


@pytest.fixture
@torch.no_grad()
def other_model():
    """A model all of whose weights differ from the base's."""
    module = small_model("image")
    for tensor in module.parameters():
        tensor.add_(1)
    return module


def test_folder_with_a_base_holds_the_head_alone(small):
    stored = load_file(small / "model.safetensors")
    assert stored
    assert all(name.startswith("heads.pets.") for name in stored)


def test_folder_with_a_base_loads_whole(small, whole):
    tensors = weights.load(small, dtype=torch.float32).state_dict()
    assert_same_tensors(tensors, weights.load(whole).state_dict())


def test_folder_with_a_base_is_converted_to_a_whole_one(small, whole, tmp_path):
    folder = convert(small, tmp_path / "converted")
    assert describe(folder).config.base is None
    assert set(load_file(folder / "model.safetensors")) == set(load_file(whole / "model.safetensors"))


def test_changed_base_is_refused(base, small, other_model):
    weights.save(base, other_model, Config(other_model.config), dtype="float16")

    with pytest.raises(UserError, match=r"small: .*base with fingerprint \w{16}"):
        weights.load(small)


def test_model_that_shares_nothing_is_no_base(tmp_path, whole, other_model):
    other = weights.save(tmp_path / "other", other_model, Config(other_model.config))

    with pytest.raises(UserError, match="other: shares no tensor"):
        convert(whole, tmp_path / "small", base=str(other))
    assert not (tmp_path / "small").exists()


def test_base_that_leaves_nothing_is_refused(tmp_path, whole):
    with pytest.raises(UserError, match="--base"):
        convert(whole, tmp_path / "small", base=str(whole))
    assert not (tmp_path / "small").exists()
