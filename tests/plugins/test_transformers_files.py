"""Models of the transformers plug-in saved, offloaded, and read by our own library."""

import torch
import transformers

import onepeace


def check_same_outputs(model, other, inputs):
    outputs = model(**inputs).to_tuple()
    other_outputs = other(**inputs).to_tuple()
    for tensor, other_tensor in zip(outputs, other_outputs, strict=True):
        assert torch.equal(tensor, other_tensor)


def test_saved_model_computes_the_same(saved, hf_model, inputs):
    loaded, report = transformers.AutoModel.from_pretrained(saved, output_loading_info=True)

    assert type(loaded) is type(hf_model)
    assert not any(report.values())
    assert loaded.onepeace.config == hf_model.onepeace.config
    assert list(loaded.onepeace.adapters) == list(hf_model.onepeace.adapters)  # config.json is sorted by name
    check_same_outputs(loaded, hf_model, inputs)


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
