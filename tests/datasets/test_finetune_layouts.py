"""Each layout for fine-tuning on a few made-up files of its download: what the trainer reads of the shards."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image
from support.clips import plain_video
from support.downloads import picture
from support.finetune_downloads import refer

from onepeace.data.shard import content_of, open_shard
from onepeace.data.shards import read_source
from onepeace.datasets import LAYOUTS
from onepeace.datasets.vqa_answers import normalize_answer, soft_scores


def read(done, pattern, pair=("image",), targets=()):
    """The samples of shards by key."""
    samples = read_source(pattern, pair, done.root, targets=targets)
    return {sample.key: sample for sample in samples}


def classes(done, folder):
    return json.loads((done.root / folder / "classes.json").read_text())


def size_of(data):
    return Image.open(io.BytesIO(data)).size


# ------------------------------------------------------------------ sounds and pictures


def test_vggsound_with_pictures(prepare):
    """A clip is shown by a picture, or by the middle of its video, which gets lighter; one has neither."""
    shown = {
        "clips/---g-f_I2yQ_000001.mp4": b"no video: the picture is taken",
        "more/---g-f_I2yQ_000001.jpg": Image.new("RGB", (60, 40), (200, 10, 10)),
        "clips/--0PQM4-hqg_000030.mp4": plain_video(21, level=10),
    }
    done = prepare("vggsound", "pictures=true", "size=20", files=shown)
    (val,) = read(done, "val/vggsound/*.tar", ("audio", "image"), ("label",)).values()
    (train,) = read(done, "train/audio_text/*.tar", ("audio", "image"), ("label",)).values()
    assert val.label == "people marching"
    assert size_of(val.inputs["image"]) == (30, 20)
    assert np.allclose(Image.open(io.BytesIO(val.inputs["image"])).getpixel((15, 10)), (200, 10, 10), atol=12)
    assert train.key == "vgg_--0PQM4-hqg_000030"
    assert Image.open(io.BytesIO(train.inputs["image"])).convert("L").getpixel((10, 10)) == pytest.approx(100, abs=8)
    assert "vggsound.csv: 1 of 2 image files are missing (vgg_ttttttttttt_000000)" in done.err
    assert set(prepare("vggsound").train) == {"vgg_--0PQM4-hqg_000030", "vgg_ttttttttttt_000000"}


# ------------------------------------------------------------------ pictures and words


def test_vqav2(prepare):
    done = prepare("vqav2", "size=20")
    train = read(done, "train/vqav2/*.tar", ("image", "text"), ("answers", "annotations"))
    assert set(train) == {"vqav2_9000", "vqav2_9001"}
    net, two = train["vqav2_9000"], train["vqav2_9001"]
    assert net.captions == ["What is this?"]
    assert net.targets["answers"] == {"net": 1.0}  # six people, in three spellings; the others' answers are no class
    assert net.targets["annotations"][4:7] == ["the net", "Net.", "netting"]
    assert two.targets["answers"] == {"2": 0.9}
    assert size_of(net.inputs["image"]) == (30, 20)
    assert net.inputs["image"] == two.inputs["image"]
    assert done.train["vqav2_9000"].about["answer_type"] == "other"
    assert "questions.json: 1 of 3 image files are missing (vqav2_30000)" in done.err
    assert classes(done, "val/vqav2") == classes(done, "train/vqav2") == ["net", "2", "man"]
    assert set(read(done, "val/vqav2/vqav2_val2014-*.tar", targets=("answers",))) == {"vqav2_42000"}
    done = prepare("vqav2", "answers=1")
    assert classes(done, "val/vqav2") == ["net"]
    assert read(done, "train/vqav2/*.tar")["vqav2_9001"].targets["answers"] == {}


def test_vqav2_of_the_test_split_has_no_answers(prepare):
    questions = {"questions": [{"question_id": 1, "image_id": 7, "question": "What?"}]}
    files = {
        "v2_OpenEnded_mscoco_test-dev2015_questions.json": questions,
        "test2015/COCO_test2015_000000000007.jpg": picture(7),
    }
    done = prepare("vqav2", "val=[test-dev2015]", files=files)
    assert read(done, "val/vqav2/vqav2_test-dev2015-*.tar")["vqav2_1"].targets == {}
    assert len(classes(done, "val/vqav2")) == 3


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The  Two dogs.", "2 dogs"), ("none", "0"), ("dont", "don't"), ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"), ("100,978", "100978"), ("2.5", "2.5"), ("u.s.", "us"), ("red/blue", "red blue"),
        ("red / blue", "red blue"), ("what?!", "what"), ("girl's", "girl's"), ("2:50\tpm\n", "2:50 pm"), ("A", ""),
        ("t-shirt", "t shirt"), ("t- shirt", "t shirt"), ("somebody'd", "somebodyd"),
    ],
)  # fmt: skip
def test_answers_are_spelt_as_the_official_evaluation_does(answer, normal):
    assert normalize_answer(answer) == normal


def test_soft_scores_are_the_mean_over_nine_of_ten_people():
    people = ["cat"] * 1 + ["dog"] * 2 + ["The cow"] * 3 + ["pig"] * 4

    def official(answer):
        others = [[p for j, p in enumerate(people) if j != i] for i in range(10)]
        return np.mean([min(1, sum(normalize_answer(p) == answer for p in nine) / 3) for nine in others])

    scores = soft_scores(people)
    assert scores == {"cat": 0.3, "dog": 0.6, "cow": 0.9, "pig": 1.0}
    assert [official(answer) for answer in scores] == pytest.approx([*scores.values()])


def test_nlvr2_has_two_pictures(prepare):
    done = prepare("nlvr2", "size=15", files={"images/dev-850-1-img1.png": "no picture"})
    (sample,) = read(done, "train/nlvr2/*.tar", ("image", "text"), ("label",)).values()
    assert (sample.key, sample.label, sample.captions) == ("nlvr2_train-7-0-0", "True", ["It is train-7-0-0."])
    left, right = sample.inputs["image"]
    assert size_of(left) == size_of(right) == (20, 15)
    assert left != right
    assert "train.json: 1 of 2 image files are missing (nlvr2_train-8-1-0)" in done.err
    assert "dev-850-1-img0.png: " in done.err  # the first of two names the sample
    (dev,) = read(done, "val/nlvr2/*.tar", ("image", "text"), ("label", "sentence")).values()
    assert (dev.key, dev.targets["sentence"]) == ("nlvr2_dev-850-0-1", "dev-850-1")
    assert len(done.val["nlvr2_dev-850-0-1"].inputs["image"]) == 2
    assert classes(done, "val/nlvr2") == ["True", "False"]


def test_snli_ve_has_a_premise_and_a_label_for_each_statement(prepare):
    done = prepare("snli_ve")
    samples = read(done, "train/snli_ve/*.tar", ("image", "text"), ("label", "premise"))
    assert {key: (one.label, *one.captions) for key, one in samples.items()} == {
        "snlive_7_0r1n": ("entailment", "An animal."),
        "snlive_7_1r1n": ("contradiction", "A cat."),
        "snlive_7_2r1n": ("neutral", "It is happy."),
    }
    assert {one.targets["premise"] for one in samples.values()} == {"A dog in picture 7."}
    assert "snli_ve_train.jsonl: 1 of 4 image files are missing (snlive_8_0r1n)" in done.err
    assert list(done.val) == ["snlive_9_0r1n"]
    assert classes(done, "val/snli_ve") == ["contradiction", "entailment", "neutral"]


@pytest.mark.parametrize(
    ("name", "val"),
    [
        ("refcoco", ("val", "testA", "testB")),
        ("refcoco_plus", ("val", "testA", "testB")),
        ("refcocog", ("val", "test")),
    ],
)
def test_refcoco(prepare, name, val):
    done = prepare(name, "size=20")
    prefix = name.replace("_", "")
    for i, split in enumerate(("train", *val)):
        samples = read(done, f"{'train' if i == 0 else 'val'}/{name}/{name}_{split}-*.tar", ("image", "text"), ("box",))
        assert set(samples) == {f"{prefix}_{2 * i}", f"{prefix}_{2 * i + 1}"}
        sample = samples[f"{prefix}_{2 * i + 1}"]
        assert sample.captions == [f"the {split} dog 1"]
        assert sample.targets["box"] == pytest.approx([i / 10, 0.1, i / 10 + 0.5, 0.6])
        assert size_of(sample.inputs["image"]) == (30, 20)
    assert done.train[f"{prefix}_0"].about["ann_id"] == 100


def test_the_pickle_of_refcoco_is_not_run(prepare, tmp_path):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    done = prepare("refcoco", files={"refcoco/refs(unc).p": pickle.dumps([Payload()])}, code=1)
    assert "refs(unc).p: holds " in done.err
    assert "nothing was run" in done.err
    assert not (tmp_path / "ran").exists()


def test_a_split_that_a_set_does_not_have_is_named(prepare):
    done = prepare("refcoco", files=refer("refcoco", ("train", "val")), code=1)
    assert "has no split 'testA'; it has train, val" in done.err


def test_coco_detection(prepare):
    done = prepare("coco_detection")
    train = read(done, "train/coco_detection/*.tar", ("image",), ("boxes", "box_labels"))
    sample, empty = train["cocodet_000000000009"], train["cocodet_000000000025"]
    assert sample.targets["box_labels"] == ["dog", "cat"]  # no crowd, nothing without an area
    assert np.allclose(sample.targets["boxes"], [[0.1, 0.1, 0.6, 0.6], [5 / 6, 0, 1, 0.4]], atol=1e-6)
    assert empty.targets == {"boxes": [], "box_labels": []}
    about = done.train["cocodet_000000000009"].about
    assert (about["objects"], about["width"], about["height"]) == ([2, 3], 60, 40)
    assert classes(done, "val/coco_detection") == ["cat", "dog"]


def test_ade20k(prepare, source):
    done = prepare("ade20k", "size=20")
    (train,), (val,) = (read(done, f"{split}/ade20k/*.tar", targets=("mask",)).values() for split in ("train", "val"))
    for sample, left, right in ((train, 255, 0), (val, 1, 2)):
        mask = np.asarray(Image.open(io.BytesIO(sample.targets["mask"])))
        assert mask.dtype == np.uint8
        assert mask.shape == (20, 30)
        assert size_of(sample.inputs["image"]) == (30, 20)
        assert (mask[:, :15] == left).all()
        assert (mask[:, 15:] == right).all()
    assert classes(done, "val/ade20k") == ["wall", "building", "sky"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (Image.new("L", (60, 39), 1), "a map of mode L, 60 x 39; expected 8 bits, 60 x 40 as the picture"),
        (Image.new("L", (60, 40), 4), "has class 4 of 3"),
        ("no picture", "ADE_train_00000001.jpg: "),
    ],
)
def test_a_map_that_does_not_fit_is_left_out(prepare, content, told):
    done = prepare("ade20k", files={"ADEChallengeData2016/annotations/training/ADE_train_00000001.png": content})
    assert told in done.err
    assert not done.train
    assert done.val


# ------------------------------------------------------------------ sounds and videos


def test_avqa(prepare):
    done = prepare("avqa")
    (sample,) = read(done, "train/avqa/*.tar", ("audio", "text"), ("candidates", "choice")).values()
    assert (sample.key, sample.captions) == ("avqa_train_1", ["What sounds?"])
    assert sample.targets == {"candidates": ["motorboat", "bus", "train", "truck"], "choice": 0}
    assert read(done, "val/avqa/*.tar", ("audio",))["avqa_val_1"].targets["choice"] == 2
    assert "train_qa.json: 1 of 2 audio files are missing (avqa_train_2)" in done.err
    assert done.train["avqa_train_1"].about["youtube_id"] == "-HG3Omg_89c"


def test_desed(prepare):
    done = prepare("desed")
    train = read(done, "train/desed/*.tar", ("audio",), ("events",))
    events = {sample.key: sample.targets["events"] for sample in train.values()}
    name = "desed_train_synthetic21_train_soundscapes"
    # The sound is cut at ten seconds; the second one is silent.
    assert events == {f"{name}_000000": [[0.5, 10.0, "Running water"], [1.5, 2.25, "Dog"]], f"{name}_000001": []}
    (val,) = read(done, "val/desed/*.tar", ("audio",), ("events",)).values()
    assert val.targets["events"] == [[0.0, 1.0, "Speech"]]
    assert len(val.inputs["audio"]) > len(train[f"{name}_000000"].inputs["audio"])  # each its own 0.wav
    assert classes(done, "val/desed") == ["Dog", "Running water", "Speech"]
    done = prepare("desed", "val=[eval/public]", code=1)
    assert "metadata/eval/public.tsv: no such table; train and val name tables below" in done.err


def test_sound_events_of_tables_of_ones_own(prepare, source):
    done = prepare("sound_events", "name=door", "license=CC0")
    train = read(done, "train/door/door_train-*.tar", ("audio",), ("events",))
    assert {key: sample.targets["events"][0][2] for key, sample in train.items()} == {
        "events_train_000000": "knock", "events_train_000001": "bell", "events_train_000002": "bell",
    }  # fmt: skip
    assert done.train["events_train_000001"].about["license"] == "CC0"
    assert set(done.val) == {"events_val_000000"}
    assert "val.csv: 1 of 2 audio files are missing" in done.err
    _, split = LAYOUTS["sound_events"].splits(source, lambda name: ())
    paths = {record.key: record.inputs["audio"] for record in split.records}
    assert paths["events_train_000000"] == source / "a/1.wav"
    assert paths["events_train_000001"] == source / "b/1.wav"
    assert paths["events_train_000002"] == source / "far/off/Y-id_30.000_40.000.wav"


def test_kinetics_keeps_the_videos_as_they_are(prepare):
    done = prepare("kinetics")
    (shard,) = (done.root / "train/kinetics").glob("*.tar")
    opened = open_shard(str(shard))
    assert opened.index.key(0) == "kinetics_aaaaaaaaaaa_000007_000017"
    raw = content_of(opened.members(0))
    assert raw["mp4"] == b"one video"
    assert json.loads(raw["json"])["label"] == "air drumming"
    assert classes(done, "val/kinetics") == ["air drumming", "testifying"]
    assert "train.csv: 1 of 2 video files are missing" in done.err
