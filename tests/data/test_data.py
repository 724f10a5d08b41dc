import io
import json
import multiprocessing
import subprocess
import sys
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.small_shards import write_tar

from onepeace import processors as modalities
from onepeace.config import build
from onepeace.data.batch import Batch
from onepeace.data.builder import BatchBuilder, multi_positive_ids, names_of
from onepeace.data.sample import Sample
from onepeace.data.shards import expand, read_source
from onepeace.data.steps import DataState, EpochSampler, Share, StepDataset, Streams, loader
from onepeace.errors import UserError
from onepeace.processors import PROCESSORS, TextProcessor
from onepeace.processors.tokenizer import train_bpe
from onepeace.train.recipe import Recipe

SIZE = 24


def picture(seed, width=40, height=30):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def sound(seed, seconds=1.25):
    file = io.BytesIO()
    noise = np.random.default_rng(seed).standard_normal(int(16000 * seconds))
    soundfile.write(file, 0.1 * noise, 16000, format="WAV")
    return file.getvalue()


def about(captions, label=None):
    return json.dumps({"captions": captions, "label": label}).encode()


def pictures(count, first=0, label=None):
    members = {}
    for i in range(first, first + count):
        members[f"p{i}.png"] = picture(i)
        members[f"p{i}.json"] = about([f"picture number {i}", f"a photo of thing {i}"], label)
    return members


def sounds(count):
    members = {}
    for i in range(count):
        members[f"s{i}.wav"] = sound(i)
        members[f"s{i}.json"] = about([f"sound {i}."], f"class {i % 3}")
    return members


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_tar(folder / "pictures-0.tar", pictures(5))
    write_tar(folder / "pictures-1.tar.gz", pictures(3, first=5))
    write_tar(folder / "more.tar", pictures(4, first=100, label="gull"))
    write_tar(folder / "sounds.tar", sounds(6))
    return folder


@pytest.fixture(scope="module")
def processors():
    tokenizer = train_bpe([f"picture number {i} a photo of thing sound gull and class" for i in range(9)], 300)
    return {
        "image": PROCESSORS["image"](size=SIZE),
        "audio": PROCESSORS["audio"](max_seconds=2.0),
        "text": TextProcessor(tokenizer, max_tokens=12),
    }


NUM_TOKENS = {
    "text": lambda batch: (batch["ids"] != 1).sum(1),
    "image": lambda batch: torch.full((len(batch["pixels"]),), (SIZE // 8) ** 2),
    "audio": lambda batch: (
        batch.get("lengths", torch.full((len(batch["waveform"]),), batch["waveform"].shape[1])) // 1000
    ),
}
IMAGES = {"shards": "pictures-*", "pair": ["image", "text"]}
SOUNDS = {"shards": "sounds.tar", "pair": ["audio", "text"]}
DENOISING = {
    "objective": {"contrastive": {}, "denoising/image": {}},
    "mask": {
        "text": {"unit": "word", "unimodal": 0.15, "joint": 0.4},
        "image": {"unit": "patch", "unimodal": 0.75, "joint": 0.6875},
    },
}


def recipe(root, train=(IMAGES,), data=None, batch_size=4, **fields):
    content = {
        "model": {},
        "data": {"root": str(root), "train": list(train), **(data or {})},
        "objective": {"contrastive": {}},
        "schedule": {"steps": 10},
        "run": {"out": "unused", "batch_size": batch_size},
        **fields,
    }
    return build(Recipe, content, "recipe")


def make_steps(processors, recipe):
    sources = [read_source(source.shards, source.pair, recipe.data.root) for source in recipe.data.train]
    return StepDataset(builder(processors, recipe), sources, share(recipe))


def streams(processors, recipe, rank=0, world_size=1, **options):
    own = share(recipe, rank, world_size)
    return Streams(builder(processors, recipe), own, recipe.run.workers, **options)


def builder(processors, recipe):
    masks = recipe.mask if any(term.startswith("denoising") for term in recipe.objective) else {}
    return BatchBuilder(recipe.data, processors, NUM_TOKENS, masks)


def share(recipe, rank=0, world_size=1):
    return Share(recipe.seed, {name: recipe.batch_size(name) for name in recipe.data.modalities}, rank, world_size)


def keyed(batch):
    return list(zip(batch.keys, batch.captions, strict=True))


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Batch):
        return same(vars(a), vars(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# Reading shards


def test_source_reads_tar_and_tar_gz_in_order(root):
    source = read_source("pictures-*", ("image", "text"), root)
    assert [sample.key for sample in source.samples] == [f"p{i}" for i in range(8)]
    assert source.samples[6].inputs["image"] == picture(6)
    assert source.samples[6].captions == ["picture number 6", "a photo of thing 6"]
    assert source.samples[6].source.endswith("pictures-1.tar.gz")
    assert source.broken == []
    assert read_source("more.tar", ("image",), root).samples[0].label == "gull"


def test_caption_is_the_text_file_when_the_json_has_none(tmp_path):
    write_tar(tmp_path / "a.tar", {"x.PNG": picture(0), "x.json": b'{"label": null}', "x.txt": b" a gull \n"})
    (sample,) = read_source("a.tar", ("image", "text"), tmp_path).samples
    assert (sample.captions, sample.label) == (["a gull"], None)


def test_missing_shards_are_named(root, monkeypatch):
    with pytest.raises(UserError, match=r"no shard matches .*nothing-\*"):
        expand("nothing-*", root)
    assert expand("{sounds,more,more}.tar", root) == [str(root / "more.tar"), str(root / "sounds.tar")]
    with pytest.raises(UserError, match=r"no shard matches .*less\.tar"):
        expand("{more,less}.tar", root)
    monkeypatch.setenv("HERE", str(root))
    assert len(expand("pictures-*", "${HERE}")) == 2
    with pytest.raises(UserError, match=r"data\.root is \$\{NOWHERE\}.*data\.root=FOLDER"):
        expand("pictures-*", "${NOWHERE}")


def test_incomplete_samples_name_file_and_key(tmp_path, caplog):
    members = pictures(4)
    del members["p1.png"], members["p2.json"]
    write_tar(tmp_path / "a.tar", members)
    source = read_source("a.tar", ("image", "text"), tmp_path)
    assert [sample.key for sample in source.samples] == ["p0", "p3"]
    assert len(source.broken) == 2
    assert "a.tar: p1 has no image file" in caplog.text
    assert "a.tar: p2 has no caption" in caplog.text
    write_tar(tmp_path / "b.tar", {"x.png": picture(0)})
    with pytest.raises(UserError, match=r"b\.tar: x has no caption"):
        read_source("b.tar", ("image", "text"), tmp_path)


def test_unreadable_json_is_named_and_the_text_file_used(tmp_path):
    write_tar(tmp_path / "a.tar", {"x.png": picture(0), "x.json": b"{", "x.txt": b"a gull"})
    source = read_source("a.tar", ("image", "text"), tmp_path)
    assert source.samples[0].captions == ["a gull"]
    assert "x.json cannot be read" in source.broken[0]


def test_source_in_memory_of_which_too_much_is_broken_stops_as_a_stream_does(tmp_path):
    members = pictures(96)
    for i in range(76):
        del members[f"p{i}.json"]
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(
        UserError, match=r"^a\.tar: 76 broken to 20 usable samples, .*p75 has no caption.*broken_limit$"
    ):
        read_source("a.tar", ("image", "text"), tmp_path)
    assert len(read_source("a.tar", ("image", "text"), tmp_path, broken_limit=0.8).samples) == 20
    write_tar(tmp_path / "b.tar", {name: data for name, data in members.items() if int(name[1:-4].rstrip(".")) > 65})
    assert len(read_source("b.tar", ("image", "text"), tmp_path, broken_limit=0).broken) == 10  # a few are free


def test_source_in_memory_is_a_command_s_output_where_that_is_allowed(tmp_path):
    path = write_tar(tmp_path / "a.tar", pictures(2))
    with pytest.raises(UserError, match=r"data\.allow_pipe=true"):
        read_source(f"pipe:cat {path}", ("image", "text"))
    assert len(read_source(f"pipe:cat {path}", ("image", "text"), allow_pipe=True).samples) == 2


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_truncated_shard_gives_what_it_still_holds(tmp_path, name):
    path = write_tar(tmp_path / name, pictures(6))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    write_tar(tmp_path / "b.tar", pictures(2, first=10))
    source = read_source("*", ("image", "text"), tmp_path)
    keys = [sample.key for sample in source.samples]
    assert 0 < len(keys) - 2 < 6
    assert keys[-2:] == ["p10", "p11"]
    assert any(name in line for line in source.broken)


def test_member_that_comes_twice_is_named_and_the_rest_is_read(tmp_path):
    write_tar(tmp_path / "a.tar", [("x.png", picture(0)), ("x.png", picture(1)), *pictures(2).items()])
    source = read_source("a.tar", ("image", "text"), tmp_path)
    assert [sample.key for sample in source.samples] == ["p0", "p1"]
    assert "a.tar: x.png: duplicate file name" in source.broken[0]


def test_file_that_is_no_tar_is_named(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar at all")
    with pytest.raises(UserError, match=r"no usable sample; .*a\.tar"):
        read_source("a.tar", ("image", "text"), tmp_path)


def test_shard_name_is_never_a_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "pipe:touch ran;.tar", pictures(1))
    read_source("pipe*", ("image", "text"))
    assert not (tmp_path / "ran").exists()


def test_new_modality_needs_a_decoder_only(tmp_path, monkeypatch):
    class Depth(modalities.Processor):
        key = "depth"
        suffixes = frozenset({".depth"})

        def decode(self, item):
            return torch.tensor(list(item), dtype=torch.float32)

        def collate(self, samples):
            return {"values": torch.stack(samples)}

    monkeypatch.setitem(PROCESSORS, "depth", Depth)
    members = {name: data for i in range(3) for name, data in {f"{i}.depth": bytes([i, 7]), f"{i}.txt": b"x"}.items()}
    write_tar(tmp_path / "a.tar", members)
    steps = make_steps({"depth": Depth()}, recipe(tmp_path, [{"shards": "a.tar", "pair": ["depth"]}], batch_size=3))
    (batch,) = steps[0]
    assert sorted(batch.inputs["depth"]["values"].tolist()) == [[0, 7], [1, 7], [2, 7]]


# EpochSampler


@given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(0.1, 3.5)), min_size=1, max_size=3),
    st.integers(0, 99),
)
@settings(deadline=None, derandomize=True, max_examples=50)
def test_an_epoch_has_each_item_as_often_as_its_weight_says(sources, seed):
    sizes, weights = zip(*sources, strict=True)
    if not any(round(weight * size) for size, weight in sources):
        return
    order = EpochSampler(sizes, weights, [seed])
    for epoch in range(2):
        epoch_items = [order[epoch * order.epoch_length + i] for i in range(order.epoch_length)]
        counts = np.bincount(epoch_items, minlength=sum(sizes))
        first = 0
        for size, weight in sources:
            mine = counts[first : first + size]
            assert set(mine) <= {int(weight), int(weight) + 1}
            assert mine.sum() == int(weight) * size + round((weight - int(weight)) * size)
            first += size


def test_epochs_and_seeds_are_different_permutations():
    order = EpochSampler([50], [1.0], [1])
    epochs = [[order[e * 50 + i] for i in range(50)] for e in (0, 1, 0)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(50))
    assert epochs[0] != epochs[1]
    assert epochs[0] == epochs[2]
    assert [EpochSampler([50], [1.0], [2])[i] for i in range(50)] != epochs[0]


def test_rare_items_change_from_epoch_to_epoch():
    order = EpochSampler([40], [0.25], [1])
    epochs = [{order[e * 10 + i] for i in range(10)} for e in range(4)]
    assert all(len(epoch) == 10 for epoch in epochs)
    assert len(set.union(*epochs)) > 20


def test_weights_that_leave_nothing_are_an_error():
    with pytest.raises(UserError, match="leave none"):
        EpochSampler([3], [0.1], [1])


def test_batch_by_source_that_is_too_large_names_the_largest_that_fits():
    with pytest.raises(
        UserError, match=r"leave 5 an epoch, too few for a batch of 6 .* run\.batch_size to 5 or raise a w"
    ):
        EpochSampler([3, 2], [1.0, 1.0], [1], run=6)
    assert EpochSampler([3, 2], [1.0, 1.0], [1], run=5).epoch_length == 5


# StepDataset


def test_batch_holds_what_the_model_reads(root, processors):
    first, second = make_steps(
        processors, recipe(root, [IMAGES, SOUNDS], batch_size={"image+text": 5, "audio+text": 3})
    )[0]
    assert first.pair == "image+text"
    assert first.inputs["image"]["pixels"].shape == (5, 3, SIZE, SIZE)
    assert first.inputs["text"]["ids"].shape[0] == 5
    assert second.inputs["audio"]["waveform"].shape == (3, 20000)
    assert "lengths" not in second.inputs["audio"]  # they are equally long
    assert not first.masks
    assert not first.token_dropout
    for key, caption, ids in zip(first.keys, first.captions, first.inputs["text"]["ids"], strict=True):
        assert caption in (f"picture number {key[1:]}", f"a photo of thing {key[1:]}")
        assert ids[ids != 1].tolist() == processors["text"].decode(caption).tolist()


def test_unvaried_pictures_equal_the_decoder(root, processors):
    (batch,) = make_steps(processors, recipe(root))[0]
    for key, pixels in zip(batch.keys, batch.inputs["image"]["pixels"], strict=True):
        assert torch.equal(pixels, processors["image"].decode(picture(int(key[1:]))))


def test_text_only_batch_has_only_text(root, processors):
    (batch,) = make_steps(processors, recipe(root, [{"shards": "pictures-*", "pair": ["text"]}]))[0]
    assert set(batch.inputs) == {"text"}
    assert len(batch.inputs["text"]["ids"]) == 4


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
        assert same([group for group, _ in loader(make_steps(processors, made), 3, 6, workers)], expected)
    assert not same(expected[0], expected[1])
    other = recipe(root, [IMAGES, SOUNDS], varied, seed=2, **DENOISING)
    assert not same(make_steps(processors, other)[3], expected[0])


def test_pairs_in_turn_are_the_same_batches_one_pair_a_step(root, processors):
    together = make_steps(processors, recipe(root, [IMAGES, SOUNDS]))
    in_turn = make_steps(processors, recipe(root, [IMAGES, SOUNDS], {"pairs": "in_turn"}))
    for step in range(4):
        assert same(in_turn[step], [together[step // 2][step % 2]])


@pytest.mark.parametrize("workers", [1, 2])
def test_streamed_pairs_in_turn_leave_no_lane_unread(root, processors, workers):
    """With as many workers as pairs, each worker could come to see but one pair."""
    wanted = recipe(root, [IMAGES, SOUNDS], {"pairs": "in_turn", "stream": True}, batch_size=2)
    wanted = replace(wanted, run=replace(wanted.run, workers=workers))
    made = list(islice(loader(streams(processors, wanted), 0, 12, workers), 12))
    names = [batch.pair for batches, _ in made for batch in batches]
    assert names == (["image+text"] * workers + ["audio+text"] * workers) * (6 // workers)
    seen = {key for batches, _ in made for batch in batches for key in batch.keys}
    assert seen == {f"p{i}" for i in range(8)} | {f"s{i}" for i in range(6)}
    # And on from a place in the middle.
    state = DataState(1, workers, {})
    for _, after in made[:5]:
        state.positions.update(after)
    rest = streams(processors, wanted, state=DataState.read(state.gathered([state.positions])), first=5)
    assert same([batches for batches, _ in loader(rest, 5, 12, workers)], [batches for batches, _ in made[5:]])


@pytest.mark.parametrize("pairs", ["together", "in_turn"])
def test_streams_give_the_same_batches_whatever_the_number_of_worker_processes(root, processors, pairs):
    wanted = recipe(root, [IMAGES, SOUNDS], {"pairs": pairs, "stream": True}, batch_size=2)
    wanted = replace(wanted, run=replace(wanted.run, workers=2))
    made = list(loader(streams(processors, wanted), 0, 12, 2))
    assert same(list(loader(streams(processors, wanted), 0, 12, 0)), made)
    # On from the middle without processes, where there were two.
    state = DataState(1, 2, {})
    for _, after in made[:5]:
        state.positions.update(after)
    alone = replace(wanted, run=replace(wanted.run, workers=0))
    assert same(list(loader(streams(processors, alone, state=state, first=5), 5, 12, 0)), made[5:])


def test_streamed_batches_by_source_are_of_one_source_over_all_processes(tmp_path, processors, caplog):
    """Although what one process reads holds a picture that cannot be decoded, and another takes its place."""
    members = pictures(8)
    members["p3.png"] = b"rubbish"
    write_tar(tmp_path / "pictures-0.tar", members)
    write_tar(tmp_path / "more.tar", pictures(8, first=100))
    train = [IMAGES, {"shards": "more.tar", "pair": ["image", "text"]}]
    wanted = recipe(tmp_path, train, {"batches": "by_source", "stream": True}, 4)
    ranks = [streams(processors, wanted, rank, 2) for rank in range(2)]
    steps = list(zip(*([batches for batches, _ in loader(rank, 0, 16, 0)] for rank in ranks), strict=True))
    # A source's substitute may be of the other source; a step without one is not mixed.
    whole = [[*first.keys, *second.keys] for (first,), (second,) in steps if not first.replaced + second.replaced]
    kinds = [{len(key) for key in step} for step in whole]  # p7, p100
    assert len(whole) < 16
    assert all(len(kind) == 1 for kind in kinds)
    assert set.union(*kinds) == {2, 4}
    assert "p3 cannot be decoded" in caplog.text


def test_another_pair_leaves_the_first_one_as_it_was(root, processors):
    alone = make_steps(processors, recipe(root, [IMAGES]))[2]
    both = make_steps(processors, recipe(root, [SOUNDS, IMAGES]))[2]
    assert same(alone[0], both[1])


def test_steps_run_on_over_the_end_of_an_epoch(root, processors):
    steps = make_steps(processors, recipe(root, batch_size=3))  # 8 items
    keys = [key for step in range(8) for key in steps[step][0].keys]
    for epoch in range(3):
        assert sorted(keys[8 * epoch : 8 * epoch + 8]) == [f"p{i}" for i in range(8)]


def test_steps_by_source(root, processors):
    train = [IMAGES, {"shards": "more.tar", "pair": ["image", "text"]}]
    steps = make_steps(processors, recipe(root, train, {"batches": "by_source"}, 4))
    kinds = [{len(key) for key in steps[step][0].keys} for step in range(6)]  # p7, p100
    assert all(len(kind) == 1 for kind in kinds)
    assert set.union(*kinds) == {2, 4}


def test_batch_larger_than_the_set(root, processors):
    (batch,) = make_steps(processors, recipe(root, batch_size=20))[0]
    assert np.unique(batch.keys, return_counts=True)[1].tolist().count(2) >= 4
    same_key = [[a == b for b in batch.keys] for a in batch.keys]
    assert (multi_positive_ids(batch.names)[:, None] == multi_positive_ids(batch.names)).tolist() == same_key


def test_masks_and_drop_fit_their_batch(root, processors):
    steps = make_steps(processors, recipe(root, data={"token_dropout": {"image": 0.5}}, **DENOISING))
    (batch,) = steps[0]
    assert set(batch.masks) == {"text", "image"}
    assert batch.token_dropout.keys() == {"image"}
    assert batch.token_dropout["image"].shape == (4, 1 + 9 - 4)
    keep, masked = batch.masks["image"]["unimodal"]
    assert masked.shape == (4, 10)
    assert masked.sum(1).tolist() == [6] * 4
    assert keep.shape == (4, 4)
    keep, masked = batch.masks["text"]["joint"]
    lengths = NUM_TOKENS["text"](batch.inputs["text"])
    assert masked.shape == (4, batch.inputs["text"]["ids"].shape[1] + 1)
    assert masked.sum(1).tolist() == [int(0.4 * (n - 1)) for n in lengths.tolist()]


def test_masks_are_drawn_only_for_denoising_terms(root, processors):
    (batch,) = make_steps(processors, recipe(root, **{**DENOISING, "objective": {"contrastive": {}}}))[0]
    assert not batch.masks


def test_masks_are_drawn_for_a_denoising_term_with_a_label_too(root, processors):
    labelled = {**DENOISING, "objective": {"contrastive": {}, "denoising:small/image": {}}}
    (batch,) = make_steps(processors, recipe(root, **labelled))[0]
    assert set(batch.masks) == {"text", "image"}


def test_captions_and_templates_are_all_drawn(root, processors):
    train = [{"shards": "more.tar", "pair": ["image", "text"]}, IMAGES]
    steps = make_steps(processors, recipe(root, train, {"templates": {"image": ["one {}"], "audio": ["two {}"]}}, 12))
    drawn = {(key, text) for i in range(12) for key, text in keyed(steps[i][0])}
    assert {text for key, text in drawn if key == "p100"} == {"picture number 100", "a photo of thing 100", "one gull"}
    # Without a label there is nothing to put into a template.
    assert {text for key, text in drawn if key == "p1"} == {"picture number 1", "a photo of thing 1"}


def test_mixed_clips_are_positives_of_none(root, processors):
    steps = make_steps(processors, recipe(root, [SOUNDS], {"augment": {"audio": {"mix": 0.5}}}, 6))
    (batch,) = steps[0]
    mixed = [" and " in caption for caption in batch.captions]
    assert 0 < sum(mixed) < 6
    for i, caption in enumerate(batch.captions):
        mates = (multi_positive_ids(batch.names) == multi_positive_ids(batch.names)[i]).sum()
        if mixed[i]:
            assert mates == 1
            first, second = caption.split(" and ")
            assert first == f"sound {batch.keys[i][1:]}"
            assert not second.endswith(".")


def test_mixed_clips_without_a_text_are_positives_of_none(tmp_path, processors):
    members = {f"s{i}.wav": sound(i) for i in range(4)}
    members |= {
        f"t{i}.{ending}": data for i in range(2) for ending, data in (("wav", sound(i)), ("json", about([], "dog")))
    }
    write_tar(tmp_path / "a.tar", members)
    train = [{"shards": "a.tar", "pair": ["audio"]}]
    steps = make_steps(processors, recipe(tmp_path, train, {"augment": {"audio": {"mix": 1.0}}}, 6))
    (batch,) = steps[0]
    assert batch.captions == [""] * 6
    assert len(set(multi_positive_ids(batch.names).tolist())) == 6


# Groups


def sample(captions=(), label=None):
    return Sample("", "", {"text": list(captions)}, {} if label is None else {"label": label})


def grouped(items, drawn):
    return multi_positive_ids([names_of(item, text) for item, text in zip(items, drawn, strict=True)]).tolist()


def test_equal_labels_or_captions_are_one_group():
    items = [sample(["a cat"]), sample(["A cat", "tabby"]), sample(label="Cat"), sample(label="cat"), sample(["dog"])]
    drawn = ["a cat", "tabby", "a cat on a mat", "cat", "dog"]
    group = grouped(items, drawn)
    assert group[0] == group[1]  # a caption in common, even if another one was drawn
    assert group[2] == group[3]
    assert len(set(group)) == 3
    # One text in common joins label and captions.
    assert len(set(grouped(items, ["a cat", "tabby", "a cat", "cat", "dog"]))) == 2


def test_items_without_text_are_all_different():
    assert len(set(grouped([sample(), sample()], ["", ""]))) == 2
    assert len(set(grouped([sample([" "]), sample([" "])], [" ", " "]))) == 2


@given(st.lists(st.tuples(st.sampled_from("aAbcd"), st.sampled_from([None, "x", "y"])), min_size=1, max_size=8))
@settings(deadline=None, derandomize=True, max_examples=50)
def test_same_text_always_means_same_group(pairs):
    group = grouped([sample(label=label) for _, label in pairs], [text for text, _ in pairs])
    for i, (text, label) in enumerate(pairs):
        for j, (other_text, other_label) in enumerate(pairs):
            if text.lower() == other_text.lower() or (label and label == other_label):
                assert group[i] == group[j]


# What breaks


def test_broken_item_is_replaced_by_the_next_and_named_once(tmp_path, processors, caplog):
    members = pictures(12)
    members["p3.png"] = members["p3.png"][:60]
    write_tar(tmp_path / "a.tar", members)
    steps = make_steps(processors, recipe(tmp_path, [{"shards": "a.tar", "pair": ["image", "text"]}], batch_size=12))
    (batch,) = steps[0]
    assert len(batch.keys) == 12
    assert "p3" not in batch.keys
    assert batch.replaced == ["p3"]
    assert same(steps[0], [batch])
    named = [line for line in caplog.messages if "p3 cannot be decoded" in line]
    assert len(named) == 1
    assert "a.tar" in named[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_rotten_data_stop_the_run_with_one_line(tmp_path, processors, workers):
    members = pictures(40)
    members |= {name: b"rubbish" for name in list(members)[:50] if name.endswith(".png")}
    write_tar(tmp_path / "a.tar", members)
    steps = make_steps(processors, recipe(tmp_path, [{"shards": "a.tar", "pair": ["image", "text"]}]))
    with pytest.raises(UserError, match=r"^11 of 40 items of image\+text cannot be decoded, .*broken_limit$") as caught:
        list(loader(steps, 0, 20, workers))
    assert "\n" not in str(caught.value)


def test_set_without_one_good_item_stops_at_once(tmp_path, processors):
    write_tar(tmp_path / "a.tar", {"x.png": b"rubbish", "x.txt": b"x"})
    steps = make_steps(processors, recipe(tmp_path, [{"shards": "a.tar", "pair": ["image", "text"]}]))
    with pytest.raises(UserError, match="1 of 1 items"):
        steps[0]


def test_small_stream_without_one_good_item_is_not_read_without_end(tmp_path, processors):
    """So few broken ones are below every limit."""
    write_tar(tmp_path / "a.tar", {f"{i}.{e}": b"rubbish" for i in range(3) for e in ("png", "txt")})
    train = [{"shards": "a.tar", "pair": ["image", "text"]}]
    made = streams(processors, recipe(tmp_path, train, {"stream": True}, batch_size=5))
    with pytest.raises(UserError, match="no item is left to take the place of"):
        next(iter(made))


@pytest.mark.parametrize("error", [ZeroDivisionError("two\nlines"), KeyError("x")])
def test_error_in_a_worker_process_is_one_line_with_the_traceback_behind_it(error):
    class Broken:
        def __getitem__(self, step):
            raise error

    with pytest.raises(RuntimeError) as caught:
        list(loader(Broken(), 0, 1, workers=1))
    line = "KeyError: 'x'" if isinstance(error, KeyError) else "lines"
    assert str(caught.value) == f"a worker that makes batches failed: {line}"
    assert "Traceback" in str(caught.value.__cause__)
    assert not multiprocessing.active_children()  # although the error is still there
    with pytest.raises(type(error)) as caught:  # in this process it is what it is
        list(loader(Broken(), 0, 1, workers=0))
    assert caught.value is error


def test_broken_second_clip_is_not_mixed_in(tmp_path, processors):
    members = sounds(4)
    members["s2.wav"] = members["s2.wav"][:40]
    write_tar(tmp_path / "a.tar", members)
    train = [{"shards": "a.tar", "pair": ["audio", "text"]}]
    steps = make_steps(processors, recipe(tmp_path, train, {"augment": {"audio": {"mix": 1.0}}}))
    captions = [caption for i in range(5) for caption in steps[i][0].captions]
    assert not any("sound 2" in caption for caption in captions)


# Reading ahead and validation


def test_loader_leaves_the_global_generator_alone(root, processors):
    state = torch.get_rng_state()
    list(loader(make_steps(processors, recipe(root)), 0, 2, workers=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_cache_changes_nothing_and_has_a_limit(root, processors):
    varied = {"augment": {"audio": {"shift": True}}}
    cached = make_steps(processors, recipe(root, [SOUNDS], varied))
    bare = make_steps(processors, recipe(root, [SOUNDS], {**varied, "cache_megabytes": 0}))
    assert same([cached[i] for i in range(4)], [bare[i] for i in range(4)])
    assert len(cached.builder._cache) == 6
    assert len(bare.builder._cache) == 0


def test_real_shards_give_steps(shared, processors):
    train = [
        {"shards": "val/emoji/*.tar.gz", "pair": ["image", "text"]},
        {"shards": "val/esc50_fold5/*.tar.gz", "pair": ["audio", "text"], "weight": 2.0},
    ]
    steps = make_steps(processors, recipe(shared / "data", train, batch_size=8))
    assert {name: len(items) for name, items in steps.items.items()} == {"image+text": 821, "audio+text": 400}
    pictures, sounds = steps[0]
    assert pictures.inputs["image"]["pixels"].isfinite().all()
    assert sounds.inputs["audio"]["waveform"].shape == (8, 32000)
    assert [item.label for item in steps.items["audio+text"]].count("dog") == 8


def test_process_ends_although_something_still_holds_a_loader():
    """As an exception does with its traceback: at exit its workers were waited for without end."""
    script = (
        "import builtins; from onepeace.data.steps import loader; builtins.kept = loader(range(9), 0, 9, workers=1)"
    )
    script += "; print(next(builtins.kept))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(0, {})\n", "")


def test_process_ends_although_something_still_holds_a_pool_of_processes():
    """Only the loader's own workers are killed at exit: a pool waits for its killed ones without end."""
    script = (
        "import builtins, multiprocessing; import onepeace.data.steps; "
        "builtins.kept = multiprocessing.get_context('fork').Pool(2); print(builtins.kept.map(abs, [-1]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "[1]\n")
