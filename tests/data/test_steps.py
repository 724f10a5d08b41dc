"""The batches of every step: what they hold, that they depend on nothing but seed and number, and what breaks."""

import multiprocessing

import pytest
import torch
from support.batches import (
    DENOISING,
    IMAGES,
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

from onepeace.data.builder import multi_positive_ids
from onepeace.data.steps import loader
from onepeace.errors import UserError


def test_batch_holds_what_the_model_reads(root, processors):
    run_recipe = recipe(root, [IMAGES, SOUNDS], batch_size={"image+text": 5, "audio+text": 3})
    first, second = batches(make_steps(processors, run_recipe), 0)
    assert list(first.inputs) == ["image", "text"]
    pixels = first.inputs["image"]["pixels"]
    ids = first.inputs["text"]["ids"]
    assert pixels.shape == (5, 3, SIZE, SIZE)
    assert len(ids) == 5
    assert second.inputs["audio"]["waveform"].shape == (3, 20000)
    assert "lengths" not in second.inputs["audio"]  # they are equally long
    assert not first.masks
    for row, (key, caption) in enumerate(keyed(first)):
        number = key[1:]
        expected = processors["image"].decode(picture(int(number)))
        assert torch.equal(pixels[row], expected)
        assert caption in (f"picture number {number}", f"a photo of thing {number}")
        tokens = ids[row][ids[row] != 1]
        assert tokens.tolist() == processors["text"].decode(caption).tolist()


def test_step_depends_on_nothing_but_seed_and_number(root, processors):
    varied = {
        "augment": {
            "image": {"crop_scale": [0.3, 1.0], "flip": True, "color": 0.3},
            "audio": {"shift": True, "gain_db": 6, "noise": 0.5, "mix": 0.5},
        },
        "token_dropout": {"image": 0.5},
        "templates": {"audio": ["the sound of {}"]},
    }
    run_recipe = recipe(root, [IMAGES, SOUNDS], varied, **DENOISING)
    expected = {}
    for number in (0, 3, 4, 5):
        expected[number] = make_steps(processors, run_recipe)[number]
    steps = make_steps(processors, run_recipe)
    for number in (0, 5, 3):
        assert same(steps[number], expected[number])
    for workers in (0, 2):
        loaded = list(loader(make_steps(processors, run_recipe), 3, 6, workers))
        assert same(loaded, [expected[3], expected[4], expected[5]])
    assert not same(expected[3], expected[4])
    other_seed = recipe(root, [IMAGES, SOUNDS], varied, seed=2, **DENOISING)
    assert not same(make_steps(processors, other_seed)[3], expected[3])


def test_captions_and_templates_are_all_drawn(root, processors):
    train = [{**IMAGES, "shards": "more.tar"}, IMAGES]
    templates = {"image": ["one {}"], "audio": ["two {}"]}
    steps = make_steps(processors, recipe(root, train, {"templates": templates}, batch_size=12))
    captions = {}
    for batch in batches(steps, *range(12)):
        for key, caption in keyed(batch):
            captions.setdefault(key, set()).add(caption)
    assert captions["p100"] == {"picture number 100", "a photo of thing 100", "one gull"}
    # Without a label there is nothing to put into a template.
    assert captions["p1"] == {"picture number 1", "a photo of thing 1"}


def test_templates_alone_make_captions_of_labels(tmp_path, processors):
    samples = {f"q{i}": (picture(i), {"label": "gull"}) for i in range(4)}
    write_shard(tmp_path / "a.tar", samples)
    train = [{**IMAGES, "shards": "a.tar"}]
    templates = {"image": ["one {}"]}
    steps = make_steps(processors, recipe(tmp_path, train, {"templates": templates}))
    (batch,) = batches(steps, 0)
    assert batch.captions == ["one gull"] * 4
    without_templates = make_steps(processors, recipe(tmp_path, train))
    with pytest.raises(UserError, match=r"no caption.*data\.templates"):
        without_templates[0]


def test_mixed_clips_are_positives_of_none(root, processors):
    mixing = {"augment": {"audio": {"mix": 0.5}}}
    steps = make_steps(processors, recipe(root, [SOUNDS], mixing, batch_size=6))
    (batch,) = batches(steps, 0)
    groups = multi_positive_ids(batch.names).tolist()
    mixed = [row for row, caption in enumerate(batch.captions) if " and " in caption]
    assert 0 < len(mixed) < 6
    for row in mixed:
        assert groups.count(groups[row]) == 1
        first, second = batch.captions[row].split(" and ")
        number = first.removeprefix("sound ")
        assert batch.keys[row] == f"s{number}.mixed"  # a key that no table of features has
        assert not second.endswith(".")


# What breaks


def test_broken_item_is_replaced_by_the_next(tmp_path, processors):
    members = pictures(12)
    members["p3.png"] = members["p3.png"][:60]
    write_tar(tmp_path / "pictures-0.tar", members)
    steps = make_steps(processors, recipe(tmp_path, batch_size=12))
    step = steps[0]
    (batch,) = step.batches
    assert len(batch.keys) == 12
    assert "p3" not in batch.keys
    (broken,) = step.lost
    assert "pictures-0.tar: p3 cannot be decoded" in broken.reason
    assert same(batches(steps, 0), [batch])


@pytest.mark.parametrize("workers", [0, 1])
def test_data_without_a_usable_sample_stop_the_run_with_one_line(tmp_path, processors, workers):
    members = pictures(40)
    for i in range(40):
        members[f"p{i}.png"] = b"rubbish"
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


def test_order_of_a_pair_does_not_matter(root, processors):
    steps = make_steps(processors, recipe(root, [IMAGES, {**IMAGES, "shards": "more.tar", "pair": ["text", "image"]}]))
    (batch,) = batches(steps, 0)
    assert list(batch.inputs) == ["image", "text"]
