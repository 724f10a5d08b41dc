"""Sets for fine-tuning as they are downloaded, with a handful of made-up files each; see downloads.py."""

import json
import pickle

import numpy as np
from PIL import Image
from support.downloads import lines, picture


def coco_photographs(split, *numbers):
    name = f"COCO_{split}_" if split.endswith("2014") else ""
    return {f"{split}/{name}{number:012d}.jpg": picture(number, (60, 40)) for number in numbers}


def vqa_split(split, rows):
    """`rows` are (question id, picture, question, the answer of most people, ten answers)."""
    questions = []
    annotations = []
    for key, image, question, most, answers in rows:
        ids = {"question_id": key, "image_id": image}
        questions.append({**ids, "question": question})
        annotations.append({
            **ids, "multiple_choice_answer": most, "question_type": "what", "answer_type": "other",
            "answers": [{"answer": text, "answer_id": number} for number, text in enumerate(answers, 1)],
        })  # fmt: skip
    return {
        f"v2_OpenEnded_mscoco_{split}_questions.json": {"questions": questions},
        f"v2_mscoco_{split}_annotations.json": {"annotations": annotations},
    }


def vqav2():
    """Two questions about one picture, a third about another that is not there, and one of validation."""
    ten_answers = ["net"] * 4 + ["the net", "Net."] + ["netting"] * 3 + ["rope"]
    questions = [
        (9000, 9, " What is  this?", "net", ten_answers),
        (9001, 9, "How many?", "two", ["two"] * 2 + ["2"] + ["3"] * 7),
        (30000, 30, "Who?", "man", ["man"] * 10),
    ]
    return {
        **coco_photographs("train2014", 9, 25),
        **coco_photographs("val2014", 42),
        **vqa_split("train2014", questions),
        **vqa_split("val2014", [(42000, 42, "Which?", "net", ["net"] * 10)]),
    }


def nlvr2():
    """Two statements about pairs of pictures in each split; a picture of the second is not there."""
    labels_by_split = {
        "train": {"train-7-0-0": "True", "train-8-1-0": "False"},
        "dev": {"dev-850-0-1": "False", "dev-850-1-0": "True"},
    }
    files = {}
    for split, labels in labels_by_split.items():
        rows = []
        for key, label in labels.items():
            rows.append(json.dumps({"identifier": key, "label": label, "sentence": f"It is  {key}."}))
            for name in ("img0", "img1"):
                path = f"images/{key.rpartition('-')[0]}-{name}.png"
                files[path] = picture(len(files), (40, 30))
        files[f"data/{split}.json"] = lines(*rows)
    del files["images/train-8-1-img1.png"]
    return files


def snli_ve():
    """Three statements about a photograph, a fourth about one that is not there, and one of validation."""

    def row(picture, number, label, statement):
        return json.dumps({
            "pairID": f"{picture}.jpg#{number}r1n", "Flickr30K_ID": str(picture), "gold_label": label,
            "sentence1": f"A dog  in picture {picture}.", "sentence2": statement,
        })  # fmt: skip

    return {
        "snli_ve_train.jsonl": lines(
            row(7, 0, "entailment", "An animal."),
            row(7, 1, "contradiction", "A cat."),
            row(7, 2, "neutral", "It is  happy."),
            row(8, 0, "neutral", "Gone."),
        ),
        "snli_ve_dev.jsonl": lines(row(9, 0, "entailment", "A dog.")),
        "flickr30k-images/7.jpg": picture(7, (60, 40)),
        "flickr30k-images/9.jpg": picture(9, (60, 40)),
    }


def refer(folder, splits, by="unc", protocol=2):
    """One photograph in each split, in which two expressions name a dog, as the pickle that is public."""
    refs = []
    images = []
    annotations = []
    for i, split in enumerate(splits):
        image = 9 + i
        sentences = [{"sent_id": 2 * i + j, "sent": f"the {split}  dog {j}", "tokens": []} for j in (0, 1)]
        refs.append({
            "ref_id": i, "ann_id": 100 + i, "image_id": image, "category_id": 1, "split": split,
            "sent_ids": [2 * i], "sentences": sentences,
        })  # fmt: skip
        images.append({"id": image, "width": 60, "height": 40})
        annotations.append({"id": 100 + i, "image_id": image, "category_id": 1, "bbox": [6 * i, 4, 30, 20]})
    categories = [{"id": 1, "name": "dog"}]
    return {
        f"{folder}/refs({by}).p": pickle.dumps(refs, protocol),
        f"{folder}/instances.json": {"images": images, "categories": categories, "annotations": annotations},
        **coco_photographs("train2014", *(image["id"] for image in images)),
    }


def refcoco():
    return refer("refcoco", ("train", "val", "testA", "testB"), protocol=0)


def refcoco_plus():
    return refer("refcoco+", ("train", "val", "testA", "testB"))


def refcocog():
    return refer("refcocog", ("train", "val", "test"), by="umd", protocol=4)


def instances(*images):
    """The first image has a dog, a cat that juts out, a crowd and a box without an area."""
    annotations = [
        {"id": 2, "category_id": 18, "bbox": [6, 4, 30, 20], "iscrowd": 0},
        {"id": 3, "category_id": 17, "bbox": [50, -4, 20, 20], "iscrowd": 0},
        {"id": 4, "category_id": 18, "bbox": [0, 0, 60, 40], "iscrowd": 1},
        {"id": 5, "category_id": 18, "bbox": [5, 5, 0, 9], "iscrowd": 0},
    ]
    return {
        "images": [{"id": n, "width": 60, "height": 40, "file_name": f"{n:012d}.jpg"} for n in images],
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
        "annotations": [{**annotation, "image_id": images[0]} for annotation in annotations],
    }


def coco_detection():
    return {
        **coco_photographs("train2017", 9, 25),
        **coco_photographs("val2017", 139),
        "annotations/instances_train2017.json": instances(9, 25),
        "annotations/instances_val2017.json": instances(139),
    }


def halves(left, right):
    """A map with the left half of one class, the right of another."""
    numbers = np.full((40, 60), left, np.uint8)
    numbers[:, 30:] = right
    return Image.fromarray(numbers)


def ade20k():
    root = "ADEChallengeData2016"
    rows = ["Idx\tRatio\tTrain\tVal\tName"]
    for number, name in enumerate(("wall", "building, edifice", "sky"), 1):
        rows.append(f"{number}\t0.1\t11664\t1172\t{name}")
    return {
        f"{root}/objectInfo150.txt": lines(*rows),
        f"{root}/images/training/ADE_train_00000001.jpg": picture(5, (60, 40)),
        f"{root}/annotations/training/ADE_train_00000001.png": halves(0, 1),
        f"{root}/images/validation/ADE_val_00000001.jpg": picture(3, (60, 40)),
        f"{root}/annotations/validation/ADE_val_00000001.png": halves(2, 3),
    }


def avqa():
    def question(key, video, answer):
        return {
            "id": key, "video_name": video, "video_id": key, "question_text": " What  sounds?", "answer": answer,
            "multi_choice": ["motorboat", "bus", "train ", "truck"], "question_relation": "Both",
        }  # fmt: skip

    return {
        "train_qa.json": [question(1, "-HG3Omg_89c_000030", 0), question(2, "gonegonegon_000001", 3)],
        "val_qa.json": [question(1, "aaaaaaaaaaa_000002", 2)],
        "sounds/-HG3Omg_89c_000030.wav": 1.0,
        "sounds/aaaaaaaaaaa_000002.wav": 1.5,
    }


HEADER = "filename\tonset\toffset\tevent_label"


def desed():
    """Two tables have a sound of one name; one sound is silent."""
    train = "train/synthetic21_train/soundscapes"
    val = "validation/validation"
    return {
        f"dataset/metadata/{train}.tsv": lines(
            HEADER, "0.wav\t1.5\t2.25\tDog", "0.wav\t0.5\t12.0\tRunning_water", "0.wav\t10.5\t11.0\tCat", "1.wav\t\t\t"
        ),
        f"dataset/metadata/{val}.tsv": lines(HEADER, "0.wav\t0.0\t1.0\tSpeech"),
        f"dataset/audio/{train}/0.wav": 1.0,
        f"dataset/audio/{train}/1.wav": 0.5,
        f"dataset/audio/{val}/0.wav": 2.0,
    }


def sound_events():
    rows = ("a/1.wav,0.5,1,knock", "b/1.wav,0.25,0.75,bell", "Y-id_30.000_40.000,0,1,bell")
    return {
        "train.csv": lines("filename,onset,offset,event_label", *rows),
        "val.csv": lines("filename,onset,offset,event_label", "2.wav,0,1,bell", "gone.wav,,,"),
        **{f"{name}.wav": 1.0 for name in ("a/1", "b/1", "far/off/Y-id_30.000_40.000")},
        "far/2.wav": 1.5,
    }


def kinetics():
    header = "label,youtube_id,time_start,time_end,split"
    return {
        "annotations/train.csv": lines(
            header, "air drumming,aaaaaaaaaaa,7,17,train", "testifying,gonegonegon,0,10,train"
        ),
        "annotations/val.csv": lines(header, "testifying,bbbbbbbbbbb,0,10,val"),
        "train/air drumming/aaaaaaaaaaa_000007_000017.mp4": b"one video",
        "val/bbbbbbbbbbb_000000_000010.mp4": b"another video",
    }


FINETUNE = {
    make.__name__: make
    for make in (
        vqav2, nlvr2, snli_ve, refcoco, refcoco_plus, refcocog, coco_detection, ade20k, avqa, desed, sound_events,
        kinetics,
    )
}  # fmt: skip
