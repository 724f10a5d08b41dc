"""Each layout for fine-tuning on a few made-up files of its download: what the trainer reads of the shards."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from support.clips import plain_video
from support.layouts import layout_file, picture_of

from onepeace.data.shard import content_of, open_shard
from onepeace.datasets.layout import load_layout
from onepeace.evaluate.protocols.vqa_answers import normalize_answer

# ------------------------------------------------------------------ sounds and pictures


def test_vggsound_with_pictures(prepare):
    """A clip is shown by a picture, or by the middle of its video, which gets lighter; one has neither."""
    files = {
        "clips/---g-f_I2yQ_000001.mp4": b"no video: the picture is taken",
        "more/---g-f_I2yQ_000001.jpg": Image.new("RGB", (60, 40), (200, 10, 10)),
        "clips/--0PQM4-hqg_000030.mp4": plain_video(21, level=10),
    }
    shards = prepare("vggsound", "pictures=true", "size=20", files=files)

    val = shards.sample("val/vggsound/*.tar", "audio", "image", targets=("label",))
    assert val.label == "people marching"
    of_file = picture_of(val.inputs["image"])
    assert of_file.size == (30, 20)
    assert of_file.getpixel((15, 10)) == pytest.approx((200, 10, 10), abs=12)
    train = shards.sample("train/audio_text/*.tar", "audio", "image")
    assert train.key == "vgg_--0PQM4-hqg_000030"
    of_video = picture_of(train.inputs["image"]).convert("L")
    assert of_video.getpixel((10, 10)) == pytest.approx(100, abs=8)
    assert "1 of 2 image files are missing (vgg_ttttttttttt_000000)" in shards.err


# ------------------------------------------------------------------ pictures and words


def test_vqav2_scores_answers_of_ten_people(prepare):
    shards = prepare("vqav2", "size=20")

    samples = shards.samples("train/vqav2/*.tar", "image", "text", targets=("answers", "annotations"))
    assert set(samples) == {"vqav2_9000", "vqav2_9001"}
    net = samples["vqav2_9000"]
    assert net.captions == ["What is this?"]
    assert net.targets["answers"] == {"net": 1.0}  # six people, in three spellings; the others' answers are no class
    assert net.targets["annotations"][4:7] == ["the net", "Net.", "netting"]
    assert shards.train["vqav2_9000"].about["answer_type"] == "other"
    two = samples["vqav2_9001"]
    assert two.targets["answers"] == {"2": 0.9}
    assert two.inputs["image"] == net.inputs["image"]
    assert picture_of(net.inputs["image"]).size == (30, 20)


def test_vqav2_validation_has_the_classes_of_training(prepare):
    shards = prepare("vqav2")

    assert set(shards.samples("val/vqav2/vqav2_val2014-*.tar")) == {"vqav2_42000"}
    assert "questions.json: 1 of 3 image files are missing (vqav2_30000)" in shards.err
    assert shards.classes("val/vqav2") == shards.classes("train/vqav2") == ["net", "2", "man"]


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The  Two dogs.", "2 dogs"), ("none", "0"), ("dont", "don't"), ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"), ("100,978", "100978"), ("2.5", "2.5"), ("u.s.", "us"), ("red/blue", "red blue"),
        ("red / blue", "red blue"), ("what?!", "what"), ("girl's", "girl's"), ("2:50\tpm\n", "2:50 pm"), ("A", ""),
        ("t-shirt", "t shirt"), ("t- shirt", "t shirt"), ("somebody'd", "somebodyd"),
    ],
)  # fmt: skip
def test_vqa_answers_are_spelt_as_the_official_evaluation_does(answer, normal):
    assert normalize_answer(answer) == normal


def test_nlvr2_has_two_pictures(prepare):
    shards = prepare("nlvr2", "size=15", files={"images/dev-850-1-img1.png": "no picture"})

    sample = shards.sample("train/nlvr2/*.tar", "image", "text", targets=("label",))
    assert sample.key == "nlvr2_train-7-0-0"
    assert sample.label == "True"
    assert sample.captions == ["It is train-7-0-0."]
    left, right = sample.inputs["image"]
    assert left != right
    assert picture_of(left).size == picture_of(right).size == (20, 15)
    dev = shards.sample("val/nlvr2/*.tar", "image", "text", targets=("label", "sentence"))
    assert dev.key == "nlvr2_dev-850-0-1"
    assert dev.targets["sentence"] == "dev-850-1"
    assert len(shards.val[dev.key].inputs["image"]) == 2
    assert "train.json: 1 of 2 image files are missing (nlvr2_train-8-1-0)" in shards.err
    assert "dev-850-1-img0.png: " in shards.err  # the first of two names the sample
    assert shards.classes("val/nlvr2") == ["True", "False"]


def test_snli_ve_has_a_premise_and_a_label_for_each_statement(prepare):
    shards = prepare("snli_ve")

    samples = shards.samples("train/snli_ve/*.tar", "image", "text", targets=("label", "premise"))
    statements = {}
    for key, sample in samples.items():
        statements[key] = (sample.label, *sample.captions)
        assert sample.targets["premise"] == "A dog in picture 7."
    assert statements == {
        "snlive_7_0r1n": ("entailment", "An animal."),
        "snlive_7_1r1n": ("contradiction", "A cat."),
        "snlive_7_2r1n": ("neutral", "It is happy."),
    }
    assert "snli_ve_train.jsonl: 1 of 4 image files are missing (snlive_8_0r1n)" in shards.err
    assert list(shards.val) == ["snlive_9_0r1n"]
    assert shards.classes("val/snli_ve") == ["contradiction", "entailment", "neutral"]


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("refcoco", ("train", "val", "testA", "testB")),
        ("refcoco_plus", ("train", "val", "testA", "testB")),
        ("refcocog", ("train", "val", "test")),
    ],
)
def test_refcoco_has_a_box_in_each_split(prepare, name, splits):
    shards = prepare(name, "size=20")

    prefix = name.replace("_", "")
    for i, split in enumerate(splits):
        part = "train" if split == "train" else "val"
        samples = shards.samples(f"{part}/{name}/{name}_{split}-*.tar", "image", "text", targets=("box",))
        first, second = samples.values()
        assert first.key == f"{prefix}_{2 * i}"
        assert second.key == f"{prefix}_{2 * i + 1}"
        assert second.captions == [f"the {split} dog 1"]
        assert second.targets["box"] == pytest.approx([i / 10, 0.1, i / 10 + 0.5, 0.6])
        assert picture_of(second.inputs["image"]).size == (30, 20)
    assert shards.train[f"{prefix}_0"].about["ann_id"] == 100


def test_refcoco_does_not_run_its_pickle(prepare, tmp_path):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    files = {"refcoco/refs(unc).p": pickle.dumps([Payload()])}
    err = prepare("refcoco", files=files, code=1).err
    assert "refs(unc).p: not a readable checkpoint" in err
    assert "nothing was run" in err
    assert not (tmp_path / "ran").exists()


def test_coco_detection_has_boxes_of_objects_alone(prepare):
    shards = prepare("coco_detection")

    samples = shards.samples("train/coco_detection/*.tar", targets=("boxes", "box_labels"))
    targets = samples["cocodet_000000000009"].targets
    assert targets["box_labels"] == ["dog", "cat"]  # no crowd, nothing without an area
    dog, cat = targets["boxes"]
    assert dog == pytest.approx([0.1, 0.1, 0.6, 0.6])
    assert cat == pytest.approx([5 / 6, 0, 1, 0.4])
    assert samples["cocodet_000000000025"].targets == {"boxes": [], "box_labels": []}
    about = shards.train["cocodet_000000000009"].about
    assert about["objects"] == [2, 3]
    assert about["width"] == 60
    assert about["height"] == 40
    assert shards.classes("val/coco_detection") == ["cat", "dog"]


@pytest.mark.parametrize(("split", "left", "right"), [("train", 255, 0), ("val", 1, 2)])
def test_ade20k_classes_count_from_zero(prepare, split, left, right):
    """0 is wall, and 255 is no class."""
    shards = prepare("ade20k", "size=20")

    sample = shards.sample(f"{split}/ade20k/*.tar", targets=("mask",))
    mask = np.asarray(picture_of(sample.targets["mask"]))
    assert mask.dtype == np.uint8
    assert mask.shape == (20, 30)
    assert (mask[:, :15] == left).all()
    assert (mask[:, 15:] == right).all()
    assert picture_of(sample.inputs["image"]).size == (30, 20)
    assert shards.classes("val/ade20k") == ["wall", "building", "sky"]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (Image.new("L", (60, 39), 1), "a map of mode L, 60 x 39"),
        (Image.new("L", (60, 40), 4), "class 4 of 3"),
        ("no picture", "ADE_train_00000001.jpg: "),
    ],
)
def test_ade20k_map_that_does_not_fit_is_left_out(prepare, content, word):
    files = {"ADEChallengeData2016/annotations/training/ADE_train_00000001.png": content}
    shards = prepare("ade20k", files=files)
    assert word in shards.err
    assert not shards.train
    assert shards.val


# ------------------------------------------------------------------ sounds and videos


def test_avqa_has_candidates_and_choice(prepare):
    shards = prepare("avqa")

    sample = shards.sample("train/avqa/*.tar", "audio", "text", targets=("candidates", "choice"))
    assert sample.key == "avqa_train_1"
    assert sample.captions == ["What sounds?"]
    assert sample.targets == {"candidates": ["motorboat", "bus", "train", "truck"], "choice": 0}
    assert shards.train["avqa_train_1"].about["youtube_id"] == "-HG3Omg_89c"
    assert shards.sample("val/avqa/*.tar", "audio").targets["choice"] == 2
    assert "train_qa.json: 1 of 2 audio files are missing (avqa_train_2)" in shards.err


def test_desed_has_events_with_times(prepare):
    shards = prepare("desed")

    samples = shards.samples("train/desed/*.tar", "audio", targets=("events",))
    name = "desed_train_synthetic21_train_soundscapes"
    first = samples[f"{name}_000000"]
    assert first.targets["events"] == [[0.5, 10.0, "Running water"], [1.5, 2.25, "Dog"]]  # cut at ten seconds
    assert samples[f"{name}_000001"].targets["events"] == []
    val = shards.sample("val/desed/*.tar", "audio", targets=("events",))
    assert val.targets["events"] == [[0.0, 1.0, "Speech"]]
    assert len(val.inputs["audio"]) > len(first.inputs["audio"])  # each its own 0.wav
    assert shards.classes("val/desed") == ["Dog", "Running water", "Speech"]


def test_sound_events_of_own_tables(prepare):
    shards = prepare("sound_events", "name=door", "license=CC0")

    samples = shards.samples("train/door/door_train-*.tar", "audio", targets=("events",))
    labels = {}
    for key, sample in samples.items():
        ((_, _, labels[key]),) = sample.targets["events"]
    assert labels == {
        "events_train_000000": "knock",
        "events_train_000001": "bell",
        "events_train_000002": "bell",
    }
    assert shards.train["events_train_000001"].about["license"] == "CC0"
    assert set(shards.val) == {"events_val_000000"}
    assert "val.csv: 1 of 2 audio files are missing" in shards.err


def test_sound_events_finds_files_by_path_or_name(prepare, source):
    prepare("sound_events")
    _, split = load_layout(layout_file("sound_events")).splits(source, lambda name: ())
    paths = {record.key: record.inputs["audio"] for record in split.records}
    assert paths == {
        "events_train_000000": source / "a/1.wav",
        "events_train_000001": source / "b/1.wav",
        "events_train_000002": source / "far/off/Y-id_30.000_40.000.wav",
    }


def test_kinetics_keeps_the_videos_as_they_are(prepare):
    shards = prepare("kinetics")

    (path,) = (shards.root / "train/kinetics").glob("*.tar")
    shard = open_shard(str(path))
    assert shard.keys[0] == "kinetics_aaaaaaaaaaa_000007_000017"
    files = content_of(shard.members(0))
    assert files["mp4"] == b"one video"
    assert json.loads(files["json"])["label"] == "air drumming"
    assert shards.classes("val/kinetics") == ["air drumming", "testifying"]
    assert "train.csv: 1 of 2 video files are missing" in shards.err
