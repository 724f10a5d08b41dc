"""The batches of every step: what they hold, that they depend on nothing but seed and number, and what breaks."""

import multiprocessing
from types import SimpleNamespace

import pytest
import torch
from support.batches import (
    ADAPTERS,
    DENOISING,
    IMAGES,
    NUM_TOKENS,
    SIZE,
    SOUNDS,
    batches,
    keyed,
    make_steps,
    picture,
    pictures,
    recipe,
    same,
)
from support.small_shards import write_shard, write_tar

from onepeace import processors as modalities
from onepeace.data.builder import multi_positive_ids
from onepeace.data.steps import loader
from onepeace.errors import UserError
from onepeace.processors import PROCESSORS


def test_new_modality_needs_a_decoder_and_a_count_of_tokens(tmp_path, monkeypatch):
    class Depth(modalities.Processor):
        key = "depth"
        suffixes = frozenset({".depth"})

        def decode(self, item):
            return torch.tensor(list(item), dtype=torch.float32)

        def collate(self, samples):
            return {"values": torch.stack(samples)}

    monkeypatch.setitem(PROCESSORS, "depth", Depth)
    counts = SimpleNamespace(token_lengths=lambda batch: torch.full((len(batch["values"]),), 2))
    monkeypatch.setitem(ADAPTERS, "depth", counts)
    members = {name: data for i in range(3) for name, data in {f"{i}.depth": bytes([i, 7]), f"{i}.txt": b"x"}.items()}
    write_tar(tmp_path / "a.tar", members)
    steps = make_steps({"depth": Depth()}, recipe(tmp_path, [{"shards": "a.tar", "pair": ["depth"]}], batch_size=3))
    (batch,) = batches(steps, 0)
    assert sorted(batch.inputs["depth"]["values"].tolist()) == [[0, 7], [1, 7], [2, 7]]


def test_batch_holds_what_the_model_reads(root, processors):
    wanted = recipe(root, [IMAGES, SOUNDS], batch_size={"image+text": 5, "audio+text": 3})
    first, second = batches(make_steps(processors, wanted), 0)
    assert list(first.inputs) == ["image", "text"]
    assert first.inputs["image"]["pixels"].shape == (5, 3, SIZE, SIZE)
    assert first.inputs["text"]["ids"].shape[0] == 5
    assert second.inputs["audio"]["waveform"].shape == (3, 20000)
    assert "lengths" not in second.inputs["audio"]  # they are equally long
    assert not first.masks
    rows = zip(first.keys, first.captions, first.inputs["image"]["pixels"], first.inputs["text"]["ids"], strict=True)
    for key, caption, pixels, ids in rows:
        assert torch.equal(pixels, processors["image"].decode(picture(int(key[1:]))))
        assert caption in (f"picture number {key[1:]}", f"a photo of thing {key[1:]}")
        assert ids[ids != 1].tolist() == processors["text"].decode(caption).tolist()


def test_step_depends_on_nothing_but_seed_and_number(root, processors):
    varied = {"augment": {"image": {"crop_scale": [0.3, 1.0], "flip": True, "color": 0.3},
                          "audio": {"shift": True, "gain_db": 6, "noise": 0.5, "mix": 0.5}},
              "token_dropout": {"image": 0.5}, "templates": {"audio": ["the sound of {}"]}}  # fmt: skip
    made = recipe(root, [IMAGES, SOUNDS], varied, **DENOISING)
    expected = [make_steps(processors, made)[step] for step in (3, 4, 5)]
    again = make_steps(processors, made)
    again[0]
    assert same([again[5], again[3]], [expected[2], expected[0]])
    for workers in (0, 2):
        assert same(list(loader(make_steps(processors, made), 3, 6, workers)), expected)
    assert not same(expected[0], expected[1])
    other = recipe(root, [IMAGES, SOUNDS], varied, seed=2, **DENOISING)
    assert not same(make_steps(processors, other)[3], expected[0])


def test_masks_and_drop_fit_their_batch(root, processors):
    steps = make_steps(processors, recipe(root, data={"token_dropout": {"image": 0.5}}, **DENOISING))
    (batch,) = batches(steps, 0)
    assert set(batch.masks) == {"text", "image"}
    assert {key for key, masks in batch.masks.items() if "contrastive" in masks} == {"image"}
    assert batch.masks["image"]["contrastive"].keep.shape == (4, 1 + 9 - 4)
    assert batch.masks["image"]["unimodal"].keep.shape == (4, 4)
    assert (batch.masks["image"]["unimodal"].masked // 9).bincount().tolist() == [6] * 4
    lengths = NUM_TOKENS["text"](batch.inputs["text"])
    assert batch.lengths["text"].tolist() == (lengths + 1).tolist()
    masked = (lengths.numpy() + 1) - batch.masks["text"]["joint"].visible
    assert masked.tolist() == [int(0.4 * (n - 1)) for n in lengths.tolist()]


def test_captions_and_templates_are_all_drawn(root, processors):
    train = [{**IMAGES, "shards": "more.tar"}, IMAGES]
    steps = make_steps(processors, recipe(root, train, {"templates": {"image": ["one {}"], "audio": ["two {}"]}}, 12))
    drawn = {(key, text) for i in range(12) for key, text in keyed(batches(steps, i)[0])}
    assert {text for key, text in drawn if key == "p100"} == {"picture number 100", "a photo of thing 100", "one gull"}
    # Without a label there is nothing to put into a template.
    assert {text for key, text in drawn if key == "p1"} == {"picture number 1", "a photo of thing 1"}


def test_templates_alone_make_captions_of_labels(tmp_path, processors):
    write_shard(tmp_path / "a.tar", {f"q{i}": (picture(i), {"label": "gull"}) for i in range(4)})
    made = recipe(tmp_path, [{**IMAGES, "shards": "a.tar"}], {"templates": {"image": ["one {}"]}})
    assert batches(make_steps(processors, made), 0)[0].captions == ["one gull"] * 4
    with pytest.raises(UserError, match=r"no caption.*data\.templates"):
        make_steps(processors, recipe(tmp_path, [{**IMAGES, "shards": "a.tar"}]))[0]


def test_mixed_clips_are_positives_of_none(root, processors):
    steps = make_steps(processors, recipe(root, [SOUNDS], {"augment": {"audio": {"mix": 0.5}}}, 6))
    (batch,) = batches(steps, 0)
    mixed = [" and " in caption for caption in batch.captions]
    assert 0 < sum(mixed) < 6
    for i, caption in enumerate(batch.captions):
        mates = (multi_positive_ids(batch.names) == multi_positive_ids(batch.names)[i]).sum()
        if mixed[i]:
            assert mates == 1
            first, second = caption.split(" and ")
            assert batch.keys[i] == f"s{first.removeprefix('sound ')}.mixed"  # a key that no table of features has
            assert not second.endswith(".")


# What breaks


def test_broken_item_is_replaced_by_the_next(tmp_path, processors):
    members = pictures(12)
    members["p3.png"] = members["p3.png"][:60]
    write_tar(tmp_path / "pictures-0.tar", members)
    steps = make_steps(processors, recipe(tmp_path, batch_size=12))
    made = steps[0]
    (batch,) = made.batches
    assert len(batch.keys) == 12
    assert "p3" not in batch.keys
    assert batch.replaced == ["p3"]
    (broken,) = made.broken
    assert broken.key == "p3"
    assert "pictures-0.tar: p3 cannot be decoded" in broken.reason
    assert same(batches(steps, 0), [batch])


@pytest.mark.parametrize("workers", [0, 1])
def test_data_without_a_usable_sample_stop_the_run_with_one_line(tmp_path, processors, workers):
    members = {name: b"rubbish" if name.endswith(".png") else data for name, data in pictures(40).items()}
    write_tar(tmp_path / "pictures-0.tar", members)
    steps = make_steps(processors, recipe(tmp_path))
    with pytest.raises(UserError, match=r"no sample of 40 in a row") as caught:
        list(loader(steps, 0, 20, workers))
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()  # although the error is still there


# Reading ahead and validation


def test_loader_leaves_the_global_generator_alone(root, processors):
    state = torch.get_rng_state()
    list(loader(make_steps(processors, recipe(root)), 0, 2, workers=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_cache_of_sounds_changes_nothing_and_has_a_limit(root, processors, monkeypatch):
    varied = {"augment": {"audio": {"shift": True}}}
    cached = make_steps(processors, recipe(root, [SOUNDS], varied))
    monkeypatch.setattr("onepeace.data.decoder.SOUND_BYTES", 0)
    bare = make_steps(processors, recipe(root, [SOUNDS], varied))
    assert same([cached[i] for i in range(4)], [bare[i] for i in range(4)])
    assert len(cached.builder.decoder._sounds) == 6
    assert len(bare.builder.decoder._sounds) == 0
