"""Public data sets as they are downloaded, with a handful of made-up files each."""

import json

import numpy as np
from PIL import Image


def picture(seed, size=(60, 48), mode="RGB"):
    """A picture of coarse random blocks: nothing like another seed's."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, len(mode)), dtype=np.uint8)
    if mode == "RGBA":
        blocks[..., 3] = 255
    return Image.fromarray(blocks, mode).resize(size, Image.Resampling.NEAREST)


def sound(path, seconds, rate=8000, channels=1):
    """A file of noise."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(len(path.name)).normal(size=(int(seconds * rate), channels)) * 0.1
    soundfile.write(path, wave, rate)


def fill(folder, files):
    """Write files by their path below a folder: text, bytes, JSON (lists, dicts), a picture, or seconds of sound.

    None removes a file.
    """
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.unlink(missing_ok=True)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, dict | list):
            path.write_text(json.dumps(content), encoding="utf-8")
        elif isinstance(content, Image.Image):
            content.save(path, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG")
        else:
            sound(path, content)


def lines(*rows):
    return "".join(f"{row}\n" for row in rows)


def tiny_imagenet():
    wnids, rows = ("n01443537", "n02509815"), ("n01443537", "n02509815", "n02509815")
    folder = "tiny-imagenet-200"
    words = ("n01443537\tgoldfish, Carassius auratus", "n02509815\tlesser panda, red panda, bear cat")
    return {
        f"{folder}/words.txt": lines(*words),
        **{
            f"{folder}/train/{wnid}/images/{wnid}_{j}.JPEG": picture(10 * i + j, (64, 64))
            for i, wnid in enumerate(wnids)
            for j in range(3)
        },
        **{f"{folder}/val/images/val_{i}.JPEG": picture(100 + i, (64, 64)) for i in range(3)},
        f"{folder}/val/val_annotations.txt": lines(*(f"val_{i}.JPEG\t{row}\t0\t0\t9\t9" for i, row in enumerate(rows))),
    }


def flickr8k():
    names = ("train_a", "dev_a", "dev_b", "test_a", "other_a")
    return {
        **{f"Flicker8k_Dataset/{name}.jpg": picture(i, (500, 333)) for i, name in enumerate(names)},
        "text/Flickr8k.token.txt": lines(*(f"{n}.jpg#{i}\t Sentence {i} of  {n} ." for n in names for i in range(5))),
        "text/Flickr_8k.trainImages.txt": "train_a.jpg\n",
        "text/Flickr_8k.devImages.txt": "dev_a.jpg\ndev_b.jpg\n",
        "text/Flickr_8k.testImages.txt": "test_a.jpg\n",
    }


def flickr30k():
    def row(i, split):
        sentences = [{"raw": f"Sentence {j} of {i} , here ."} for j in range(5)]
        return {"filename": f"{i}.jpg", "split": split, "sentences": sentences}

    rows = [row(i, split) for i, split in enumerate(("train", "val", "test", "test"), 1)]
    files = {f"flickr30k-images/{i}.jpg": picture(i, (500, 333)) for i in (1, 2, 3)}
    return {**files, "dataset_flickr30k.json": {"images": rows}}


def coco_karpathy():
    """Of a picture the sixth caption and an empty one do not count."""
    files = {
        "train": "COCO_train2014_1",
        "restval": "COCO_val2014_2",
        "test": "COCO_val2014_3",
        "val": "COCO_val2014_4",
    }
    sentences = [{"raw": text} for text in ("Sentence  0 .", " ", *(f"Sentence {i}." for i in range(1, 6)))]
    rows = [{"filename": f"{name}.jpg", "split": split, "sentences": sentences} for split, name in files.items()]
    pictures = {f"{name.split('_')[1]}/{name}.jpg": picture(i, (500, 333)) for i, name in enumerate(files.values())}
    return {**pictures, "dataset_coco.json": {"images": rows}}


def coco():
    files = {}
    for split, numbers in {"train2017": (9, 25, 234748), "val2017": (139,)}.items():
        files |= {f"{split}/{number:012d}.jpg": picture(number, (640, 480)) for number in numbers}
        rows = [{"image_id": n, "caption": f"Caption {i} \n of {n}."} for n in numbers for i in range(5)]
        files[f"annotations/captions_{split}.json"] = {"annotations": rows}
    return files


VIDEOS = [f"{letter}-_bcdefghij"[:11] for letter in "ABCDEFGYZ"]


def audiocaps():
    """Nine training clips of which seven are there, under all kinds of names; one clip each in val and test."""
    names = ["{}.wav", "Y{}.wav", "{}_30.flac", "{}_30_40.wav", "Y{}_30000_40000.wav", "{}_30.000_40.000.ogg", None,
             "{}.wav", "{}_99.wav"]  # fmt: skip
    head = "audiocap_id,youtube_id,start_time,caption"
    files = {
        f"sounds/{name.format(video)}": 1 + i / 10
        for i, (video, name) in enumerate(zip(VIDEOS, names, strict=True))
        if name
    }
    rows = (f'{91000 + i},{video},30,"Sound {i}, and so on ."' for i, video in enumerate(VIDEOS))
    files["dataset/train.csv"] = lines(head, *rows)
    for split, video in {"val": "v" * 11, "test": "t" * 11}.items():
        files[f"sounds/{split}/{video}.wav"] = 12.0
        files[f"dataset/{split}.csv"] = lines(head, *(f"{455000 + i},{video},0,{split} {i}" for i in range(5)))
    return files


def clotho():
    files = {}
    for split, names in {"development": ("Rain, 1.wav", "b.wav"), "evaluation": ("c.wav",), "validation": ()}.items():
        files |= {f"{split}/{name}": 2.0 for name in names}
        rows = [f'"{name}",' + ",".join(f"It rains {i}." for i in range(5)) for name in names]
        head = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
        files[f"clotho_captions_{split}.csv"] = lines(head, *rows)
    return files


def macs():
    table = """\
files:
- {filename: airport-lisbon-0-0-a.wav, annotations: [{sentence: 'people talk .'}, {sentence: a child laughs}]}
- {filename: public_square-paris-1-2-a.wav, annotations: [{sentence: footsteps}]}
"""
    return {"MACS.yaml": table, "TAU/audio/airport-lisbon-0-0-a.wav": 2.0}


def vggsound():
    rows = ("---g-f_I2yQ,1,people marching,test", '--0PQM4-hqg,30,"playing violin, fiddle",train',
            "ttttttttttt,0,people marching,train", "gonegonegon,5,waterfall,train")  # fmt: skip
    sounds = ("---g-f_I2yQ_000001.wav", "--0PQM4-hqg_000030.flac", "ttttttttttt_000000.wav")
    return {
        "vggsound.csv": lines(*rows),
        **{f"clips/{name}": 2.0 for name in sounds},
        "clips/gonegonegon_000005.mp4": "a video",
    }


def imagenet():
    """Three of the 1,000 classes: tench (0), and the two of one name, missile (657, 744)."""
    wnids = ("n01440764", "n03773504", "n04008634")
    train = {f"train/{wnid}/{wnid}_{i}.JPEG": picture(10 + i, (300, 400)) for i, wnid in enumerate(wnids)}
    return train | {f"val/{wnid}/ILSVRC2012_val_0000000{i}.JPEG": picture(i, (60, 48)) for i, wnid in enumerate(wnids)}


def urbansound8k():
    """Three folds of two classes; one file is missing."""
    head = "slice_file_name,fsID,start,end,salience,fold,classID,class"
    rows = []
    for fold in (1, 2, 10):
        rows += [(f"{100 + fold}-{target}-0-{i}.wav", fold, target) for target in (0, 1) for i in (0, 1)]
    names = ("air_conditioner", "car_horn")
    table = [f"{name},{100 + fold},0.0,4.0,1,{fold},{target},{names[target]}" for name, fold, target in rows]
    sounds = {f"UrbanSound8K/audio/fold{fold}/{name}": 0.2 for name, fold, _ in rows[1:]}
    return {"UrbanSound8K/metadata/UrbanSound8K.csv": lines(head, *table), **sounds}


def fsd50k():
    return {
        "FSD50K.ground_truth/vocabulary.csv": lines("0,Bark,/m/05tny_", "1,Dog,/m/0bt9lr", "2,Car_horn,/m/0912c9"),
        "FSD50K.ground_truth/dev.csv": lines("fname,labels,mids,split", '64760,"Bark,Dog","/m/05tny_,/m/0bt9lr",train'),
        "FSD50K.ground_truth/eval.csv": lines("fname,labels,mids", "37199,Car_horn,/m/0912c9", "37200,Dog,/m/0bt9lr"),
        "FSD50K.dev_audio/64760.wav": 1.0,
        "FSD50K.eval_audio/37199.wav": 1.0,
    }


DOWNLOADS = {
    make.__name__: make
    for make in (
        tiny_imagenet, flickr8k, flickr30k, coco_karpathy, coco, audiocaps, clotho, macs, vggsound,
        imagenet, urbansound8k, fsd50k,
    )
}  # fmt: skip
