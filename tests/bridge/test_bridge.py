"""The bridge to a language model: what reaches it, what trains, and that a saved folder is Llava's own."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from support.random_model import ROOT, save_random_model
from transformers import AutoProcessor, LlavaForConditionalGeneration

from onepeace.bridge import Bridge, fit, read_conversations
from onepeace.bridge.conversations import Conversation
from onepeace.errors import UserError

CAT, DOG, SOUND = (
    str(ROOT / "data" / "samples" / name) for name in ("images/cat.jpg", "images/dog.jpg", "sounds/dog.ogg")
)
PLAIN = ("{}", " {}")


@pytest.fixture
def bridge(folders):
    return Bridge.new(*folders, template=PLAIN)


def conversations(tmp_path, keys, entries):
    file = tmp_path / "llava.json"
    file.write_text(json.dumps(entries))
    return read_conversations(file, keys)


def entry(key, path, answer, question=None):
    said = [{"from": "human", "value": question or f"<{key}>"}, {"from": "gpt", "value": answer}]
    return {key: path, "conversations": said}


def test_pictures_through_the_bridge_are_those_through_llava(bridge):
    # As opened pictures: a path is decoded at a lower resolution, where its file allows it.
    cat, dog = Image.open(CAT), Image.open(DOG)
    prompt = bridge.processor(images=cat, text="<s><image> a", add_special_tokens=False, return_tensors="pt")
    assert prompt["input_ids"].tolist()[0].count(bridge.llava.config.image_token_id) == 4
    with torch.no_grad():
        theirs = bridge.llava(**prompt).logits
        (features,) = bridge.features("image", [cat])
        ours = bridge(prompt["input_ids"], prompt["attention_mask"], [features]).logits
        (other,) = bridge.features("image", [dog])
        changed = bridge(prompt["input_ids"], prompt["attention_mask"], [other]).logits
    assert theirs.shape == (1, prompt["input_ids"].shape[1], len(bridge.processor.tokenizer))
    assert theirs.isfinite().all()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert (changed - theirs).abs().max() > 1e-2


@pytest.mark.parametrize("layer", [-1, -2])
def test_features_are_the_tower_s_hidden_states(folders, layer):
    bridge = Bridge.new(*folders, layer=layer)
    pixels = bridge.processor.image_processor([CAT], return_tensors="pt")["pixel_values"]
    states = bridge.llava.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    assert len(states) == 3
    assert (states[-1] - states[-2]).abs().max() > 1e-2
    torch.testing.assert_close(bridge.features("image", [CAT])[0], states[layer][0, 1:], atol=1e-5, rtol=0)


def test_features_of_a_sound_do_not_depend_on_longer_ones(bridge):
    generator = np.random.default_rng(0)
    sounds = [(generator.normal(size=size).astype(np.float32), 16000) for size in (12000, 28000)]
    alone = [bridge.features("audio", [sound])[0] for sound in sounds]
    assert 0 < len(alone[0]) < len(alone[1])
    for one, together in zip(alone, bridge.features("audio", sounds), strict=True):
        torch.testing.assert_close(together, one, atol=1e-4, rtol=0)


def test_a_batch_has_placeholders_for_every_token_and_labels_on_answers_alone(bridge, tmp_path):
    both = {"image": [CAT, DOG], "audio": SOUND}
    turns = [("human", "<image> a <audio>"), ("gpt", "a dog"), ("human", "a cat <image>"), ("gpt", "a mat")]
    said = [{"from": who, "value": value} for who, value in turns]
    found = conversations(
        tmp_path, bridge.keys, [{**both, "conversations": said}, entry("audio", SOUND, "a dog barks")]
    )
    assert [key for key, _ in found[0].media] == ["image", "audio", "image"]
    batch = bridge.collate(found)
    cat, sound = bridge.features("image", [CAT])[0], bridge.features("audio", [SOUND])[0]
    assert [len(one) for one in batch["features"]] == [4, len(sound), 4, len(sound)]
    torch.testing.assert_close(batch["features"][0], cat)
    is_image = batch["input_ids"] == bridge.llava.config.image_token_id
    assert is_image.sum(1).tolist() == [8 + len(sound), len(sound)]
    tokenizer = bridge.processor.tokenizer
    spoken = [tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert [text.split("</s>")[:-1] for text in spoken] == [[" a dog", " a mat"], [" a dog barks"]]
    assert batch["attention_mask"][1].sum() < batch["attention_mask"].shape[1]
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    whole = bridge(**batch)
    alone = [bridge(**bridge.collate([one])).loss for one in found]
    counts = [float((row != -100).sum()) for row in batch["labels"]]
    want = sum(loss * n for loss, n in zip(alone, counts, strict=True)) / sum(counts)
    assert torch.isfinite(want)
    torch.testing.assert_close(whole.loss, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("lora", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_training_changes_the_projector_and_with_adapters_the_language_model(bridge, tmp_path, lora):
    media = {"image": bridge.features("image", [CAT])[0], "audio": bridge.features("audio", [SOUND])[0]}
    answers = {"image": "a cat on a mat", "audio": "a dog barks"}
    found = [Conversation([(f"<{key}>", answers[key])], [(key, media[key])]) for key in media]
    before = {name: value.clone() for name, value in bridge.llava.state_dict().items()}
    loss = float(bridge(**bridge.collate(found)).loss.detach())
    fit(bridge, found, tmp_path / "out", lora=lora, max_steps=15, learning_rate=2e-2, use_cpu=True, disable_tqdm=True)
    assert float(bridge(**bridge.collate(found)).loss.detach()) < 0.8 * loss
    after = bridge.llava.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("multi_modal_projector" in name for name in changed)
    assert any("language_model" in name for name in changed) == bool(lora)
    assert not [name for name in changed if "vision_tower" in name or "embed_tokens" in name or "norm" in name]


def test_a_saved_folder_is_one_of_llava(bridge, folders, tmp_path):
    torch.nn.init.normal_(bridge.llava.model.multi_modal_projector.linear_2.weight)
    options = {"max_new_tokens": 8, "do_sample": False}
    said = [bridge.generate("<image>", image=Image.open(picture), options=options) for picture in (CAT, DOG)]
    heard = bridge.generate("<audio>", audio=SOUND, options=options)
    assert all({*said, heard})
    assert len({*said, heard}) == 3
    bridge.save(tmp_path / "out")
    llava, processor = (
        kind.from_pretrained(tmp_path / "out") for kind in (LlavaForConditionalGeneration, AutoProcessor)
    )
    batch = processor(images=CAT, text="<s><image>", add_special_tokens=False, return_tensors="pt")
    out = llava.generate(**batch, **options)[0, batch["input_ids"].shape[1] :]
    assert processor.decode(out, skip_special_tokens=True).strip() == said[0]
    again = Bridge.load(tmp_path / "out", folders[0])
    assert tuple(again.template) == PLAIN
    assert again.generate("<audio>", audio=SOUND, options=options) == heard
    other = save_random_model(tmp_path / "other", layer_scale=0.4)
    with pytest.raises(UserError, match=rf"out: made of the encoder \w+, and {other} is \w+; name the one it was"):
        Bridge.load(tmp_path / "out", str(other))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": 1}, "entry 0: string indices"),
        ([{"image": CAT}], "entry 0: 'conversations'"),
        ([{"image": CAT, "conversations": [{"from": "human", "value": "<image>"}]}], "human and gpt"),
        ([entry("image", CAT, "a cat", "what?")], "0 <image> in the questions for 1 of image"),
        ([entry("image", CAT, "a cat", "<image> <audio>")], "1 <audio> in the questions for 0 of audio"),
        ([entry("image", [CAT, DOG], "a cat")], "1 <image> in the questions for 2 of image"),
        ([entry("image", CAT, "a cat"), entry("image", CAT, None)], "entry 1: the answer None should be a text"),
        ([entry("image", CAT, 3)], "entry 0: the answer 3 should be a text"),
        ([entry("image", CAT, "an <audio>")], "the answer 'an <audio>' should be a text without placeholders"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path, entries, message):
    with pytest.raises(UserError, match=message):
        conversations(tmp_path, ["image", "audio"], entries)
