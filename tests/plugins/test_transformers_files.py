"""Models of the transformers plug-in saved, loaded in part, offloaded, pushed, and read by our own library."""

import pytest
import torch
import transformers
from support.transformers_classes import AUTO_CLASSES, check_same_outputs

import onepeace


def class_name(cls):
    return cls.__name__


every_class = pytest.mark.parametrize("cls", AUTO_CLASSES, ids=class_name)


@every_class
def test_saved_model_computes_the_same(cls, random_name, inputs, tmp_path):
    model = cls.from_onepeace(random_name)
    model.save_pretrained(tmp_path)

    loaded = AUTO_CLASSES[cls].from_pretrained(str(tmp_path))

    assert type(loaded) is cls
    assert loaded.onepeace.config == model.onepeace.config
    assert list(loaded.onepeace.adapters) == list(model.onepeace.adapters)  # config.json is sorted by name
    check_same_outputs(loaded, model, inputs)


@every_class
def test_part_loads_from_the_files_of_the_whole(cls, saved, hf_model):
    model, report = cls.from_pretrained(saved, output_loading_info=True)

    head = {name for name in model.state_dict() if "classifier" in name}
    assert set(report["missing_keys"]) == head
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    tensors = hf_model.state_dict()
    for name, tensor in model.state_dict().items():
        assert name in head or torch.equal(tensor, tensors[name])


def test_saved_folder_is_a_model_folder(saved, model, texts):
    loaded = onepeace.load(saved, device="cpu", dtype="float32")

    assert loaded.modalities == model.modalities
    assert loaded.module.config == model.module.config
    assert loaded.processors["text"].settings == model.processors["text"].settings
    texts = [*texts, "the letters </s> and <pad>"]
    assert torch.equal(loaded.encode_text(texts), model.encode_text(texts))


def test_device_map_leaves_most_of_the_model_on_disk(saved, inputs, hf_model, tmp_path):
    memory = {"cpu": sum(parameter.nbytes for parameter in hf_model.parameters()) // 2}
    model = transformers.AutoModel.from_pretrained(saved, device_map="auto", max_memory=memory, offload_folder=tmp_path)

    assert "disk" in model.hf_device_map.values()
    check_same_outputs(model, hf_model, inputs)
