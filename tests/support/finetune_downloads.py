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
    questions = [{"question_id": key, "image_id": image, "question": text} for key, image, text, _, _ in rows]
    annotations = [
        {
            "question_id": key, "image_id": image, "multiple_choice_answer": most, "question_type": "what",
            "answer_type": "other", "answers": [{"answer": text, "answer_id": i} for i, text in enumerate(answers, 1)],
        }
        for key, image, _, most, answers in rows
    ]  # fmt: skip
    return {
        f"v2_OpenEnded_mscoco_{split}_questions.json": {"questions": questions},
        f"v2_mscoco_{split}_annotations.json": {"annotations": annotations},
    }


def vqav2():
    """Two questions about one picture, a third about another that is not there, and one of validation."""
    return {
        **coco_photographs("train2014", 9, 25),
        **coco_photographs("val2014", 42),
        **vqa_split(
            "train2014",
            [
                (9000, 9, " What is  this?", "net", ["net"] * 4 + ["the net", "Net."] + ["netting"] * 3 + ["rope"]),
                (9001, 9, "How many?", "two", ["two"] * 2 + ["2"] + ["3"] * 7),
                (30000, 30, "Who?", "man", ["man"] * 10),
            ],
        ),
        **vqa_split("val2014", [(42000, 42, "Which?", "net", ["net"] * 10)]),
    }


def nlvr2():
    rows = {
        "train": [("train-7-0-0", "True"), ("train-8-1-0", "False")],
        "dev": [("dev-850-0-1", "False"), ("dev-850-1-0", "True")],
    }
    files = {
        f"data/{split}.json": lines(
            *(json.dumps({"identifier": key, "label": label, "sentence": f"It is  {key}."}) for key, label in of_split)
        )
        for split, of_split in rows.items()
    }
    names = [f"{key.rpartition('-')[0]}-img{i}" for of in rows.values() for key, _ in of for i in (0, 1)]
    pictures = {f"images/{name}.png": picture(i, (40, 30)) for i, name in enumerate(names)}
    del pictures["images/train-8-1-img1.png"]
    return {**files, **pictures}


def snli_ve():
    """Three statements about a photograph, a fourth about one that is not there, and one of validation."""

    def row(picture, number, label, statement):
        return json.dumps({
            "pairID": f"{picture}.jpg#{number}r1n", "Flickr30K_ID": str(picture), "gold_label": label,
            "sentence1": f"A dog  in picture {picture}.", "sentence2": statement,
        })  # fmt: skip

    statements = [("entailment", "An animal."), ("contradiction", "A cat."), ("neutral", "It is  happy.")]
    return {
        "snli_ve_train.jsonl": lines(
            *(row(7, i, *statement) for i, statement in enumerate(statements)), row(8, 0, "neutral", "Gone.")
        ),
        "snli_ve_dev.jsonl": lines(row(9, 0, "entailment", "A dog.")),
        **{f"flickr30k-images/{number}.jpg": picture(number, (60, 40)) for number in (7, 9)},
    }


def refer(folder, splits, by="unc", protocol=2):
    """One photograph in each split, in which two expressions name a dog, as the pickle that is public."""
    refs = [
        {
            "ref_id": i, "ann_id": 100 + i, "image_id": 9 + i, "category_id": 1, "split": split, "sent_ids": [2 * i],
            "sentences": [{"sent_id": 2 * i + j, "sent": f"the {split}  dog {j}", "tokens": []} for j in (0, 1)],
        }
        for i, split in enumerate(splits)
    ]  # fmt: skip
    numbers = [ref["image_id"] for ref in refs]
    return {
        f"{folder}/refs({by}).p": pickle.dumps(refs, protocol),
        f"{folder}/instances.json": {
            "images": [{"id": number, "width": 60, "height": 40} for number in numbers],
            "categories": [{"id": 1, "name": "dog"}],
            "annotations": [
                {"id": 100 + i, "image_id": number, "category_id": 1, "bbox": [6 * i, 4, 30, 20]}
                for i, number in enumerate(numbers)
            ],
        },
        **coco_photographs("train2014", *numbers),
    }


def refcoco():
    return refer("refcoco", ("train", "val", "testA", "testB"), protocol=0)


def refcoco_plus():
    return refer("refcoco+", ("train", "val", "testA", "testB"))


def refcocog():
    return refer("refcocog", ("train", "val", "test"), by="umd", protocol=4)


def coco_detection():
    """A picture with a dog, a cat that juts out, a crowd and a box without an area, and one without anything."""

    def instances(*numbers):
        boxes = [(18, 2, [6, 4, 30, 20], 0), (17, 3, [50, -4, 20, 20], 0), (18, 4, [0, 0, 60, 40], 1)]
        boxes.append((18, 5, [5, 5, 0, 9], 0))
        return {
            "images": [{"id": n, "width": 60, "height": 40, "file_name": f"{n:012d}.jpg"} for n in numbers],
            "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
            "annotations": [
                {"id": key, "image_id": numbers[0], "category_id": kind, "bbox": box, "iscrowd": crowd}
                for kind, key, box, crowd in boxes
            ],
        }

    return {
        **coco_photographs("train2017", 9, 25),
        **coco_photographs("val2017", 139),
        "annotations/instances_train2017.json": instances(9, 25),
        "annotations/instances_val2017.json": instances(139),
    }


def ade20k():
    """Maps with the left half of one class, the right of another."""

    def halves(left, right):
        numbers = np.full((40, 60), left, np.uint8)
        numbers[:, 30:] = right
        return Image.fromarray(numbers)

    root, names = "ADEChallengeData2016", ("wall", "building, edifice", "sky")
    rows = [f"{i}\t0.1\t11664\t1172\t{name}" for i, name in enumerate(names, 1)]
    files = {f"{root}/objectInfo150.txt": lines("Idx\tRatio\tTrain\tVal\tName", *rows)}
    for split, name, numbers in (("training", "train", (0, 1)), ("validation", "val", (2, 3))):
        files[f"{root}/images/{split}/ADE_{name}_00000001.jpg"] = picture(len(name), (60, 40))
        files[f"{root}/annotations/{split}/ADE_{name}_00000001.png"] = halves(*numbers)
    return files


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


HEAD = "filename\tonset\toffset\tevent_label"


def desed():
    """Two tables have a sound of one name; one sound is silent."""
    train, val = "train/synthetic21_train/soundscapes", "validation/validation"
    return {
        f"dataset/metadata/{train}.tsv": lines(
            HEAD, "0.wav\t1.5\t2.25\tDog", "0.wav\t0.5\t12.0\tRunning_water", "0.wav\t10.5\t11.0\tCat", "1.wav\t\t\t"
        ),
        f"dataset/metadata/{val}.tsv": lines(HEAD, "0.wav\t0.0\t1.0\tSpeech"),
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
    head = "label,youtube_id,time_start,time_end,split"
    return {
        "annotations/train.csv": lines(
            head, "air drumming,aaaaaaaaaaa,7,17,train", "testifying,gonegonegon,0,10,train"
        ),
        "annotations/val.csv": lines(head, "testifying,bbbbbbbbbbb,0,10,val"),
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
