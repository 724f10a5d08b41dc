"""A folder that holds only what its model does not share with another one."""

import pytest
import torch
from safetensors.torch import load_file
from support.small_models import small_model

from onepeace.config import Config
from onepeace.errors import UserError
from onepeace.hub import weights
from onepeace.hub.convert.convert import convert

HEAD = {"pets": {"kind": "classifier", "on": "image", "num_classes": 5}}


@pytest.fixture
def base(tmp_path):
    module = small_model("image")
    return weights.save(tmp_path / "base", module, Config(module.config), dtype="float16")


@pytest.fixture
def whole(tmp_path, base):
    """The base's model, in float32, with a head of its own."""
    config = small_model("image", heads=HEAD).config
    module = small_model("image", heads=HEAD)
    module.load_state_dict(weights.load(base, dtype=torch.float32).state_dict(), strict=False)
    return weights.save(tmp_path / "whole", module, Config(config))


@torch.no_grad()
def other_model():
    """A model all of whose weights differ from the base's."""
    module = small_model("image")
    for tensor in module.parameters():
        tensor.add_(1)
    return module


def test_folder_with_a_base_holds_the_rest_alone_and_loads_whole(tmp_path, base, whole):
    small = convert(whole, tmp_path / "small", base=str(base))

    stored = load_file(small / "model.safetensors")
    assert stored
    assert all(name.startswith("heads.pets.") for name in stored)
    wanted = weights.load(whole).state_dict()
    found = weights.load(small, dtype=torch.float32).state_dict()
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    again = convert(small, tmp_path / "again")
    assert weights.describe(again).config.base is None
    assert set(load_file(again / "model.safetensors")) == set(wanted)


def test_a_changed_base_is_refused(tmp_path, base, whole):
    small = convert(whole, tmp_path / "small", base=str(base))
    module = other_model()
    weights.save(base, module, Config(module.config), dtype="float16")

    with pytest.raises(UserError, match=r"small: was made on the model .*base of fingerprint \w{16}.*train this"):
        weights.load(small)


def test_a_model_that_shares_nothing_is_no_base(tmp_path, whole):
    module = other_model()
    other = weights.save(tmp_path / "other", module, Config(module.config))

    with pytest.raises(UserError, match="other: shares no tensor with this model, so it is not its base"):
        convert(whole, tmp_path / "small", base=str(other))
    with pytest.raises(UserError, match="--base"):  # and one that has all of it leaves nothing to write
        convert(whole, tmp_path / "small", base=str(whole))
    assert not (tmp_path / "small").exists()
