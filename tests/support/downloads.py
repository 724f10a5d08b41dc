"""Public data sets as they are downloaded, with a handful of made-up files each."""

import json

import numpy as np
from PIL import Image

PHOTO = (500, 333)


def picture(seed, size=(60, 48), mode="RGB"):
    """A picture of coarse random blocks: nothing like another seed's."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (6, 8, len(mode)), dtype=np.uint8)
    if mode == "RGBA":
        blocks[..., 3] = 255
    return Image.fromarray(blocks, mode).resize(size, Image.Resampling.NEAREST)


def sound(path, seconds, rate=8000, channels=1):
    """A file of noise."""
    import soundfile

    generator = np.random.default_rng(len(path.name))
    wave = 0.1 * generator.normal(size=(int(seconds * rate), channels))
    path.parent.mkdir(parents=True, exist_ok=True)
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
    folder = "tiny-imagenet-200"
    words = lines(
        "n01443537\tgoldfish, Carassius auratus",
        "n02509815\tlesser panda, red panda, bear cat",
    )
    annotations = lines(
        "val_0.JPEG\tn01443537\t0\t0\t9\t9",
        "val_1.JPEG\tn02509815\t0\t0\t9\t9",
        "val_2.JPEG\tn02509815\t0\t0\t9\t9",
    )
    files = {
        f"{folder}/words.txt": words,
        f"{folder}/val/val_annotations.txt": annotations,
    }
    for i in range(3):
        files[f"{folder}/train/n01443537/images/n01443537_{i}.JPEG"] = picture(i, (64, 64))
        files[f"{folder}/train/n02509815/images/n02509815_{i}.JPEG"] = picture(10 + i, (64, 64))
        files[f"{folder}/val/images/val_{i}.JPEG"] = picture(100 + i, (64, 64))
    return files


def flickr8k():
    files = {}
    sentences = []
    for seed, name in enumerate(("train_a", "dev_a", "dev_b", "test_a", "other_a")):
        files[f"Flicker8k_Dataset/{name}.jpg"] = picture(seed, PHOTO)
        sentences += [f"{name}.jpg#{i}\t Sentence {i} of  {name} ." for i in range(5)]
    return {
        **files,
        "text/Flickr8k.token.txt": lines(*sentences),
        "text/Flickr_8k.trainImages.txt": "train_a.jpg\n",
        "text/Flickr_8k.devImages.txt": "dev_a.jpg\ndev_b.jpg\n",
        "text/Flickr_8k.testImages.txt": "test_a.jpg\n",
    }


def flickr30k():
    """Of the last picture there is no file."""
    rows = []
    for number, split in enumerate(("train", "val", "test", "test"), 1):
        sentences = [{"raw": f"Sentence {j} of {number} , here ."} for j in range(5)]
        rows.append({"filename": f"{number}.jpg", "split": split, "sentences": sentences})
    files = {f"flickr30k-images/{number}.jpg": picture(number, PHOTO) for number in (1, 2, 3)}
    files["dataset_flickr30k.json"] = {"images": rows}
    return files


def coco_karpathy():
    """Of a picture the sixth caption and an empty one do not count."""
    texts = ["Sentence  0 .", " ", *(f"Sentence {i}." for i in range(1, 6))]
    sentences = [{"raw": text} for text in texts]
    names = {
        "train": "train2014/COCO_train2014_1.jpg",
        "restval": "val2014/COCO_val2014_2.jpg",
        "test": "val2014/COCO_val2014_3.jpg",
        "val": "val2014/COCO_val2014_4.jpg",
    }
    files = {}
    rows = []
    for seed, (split, path) in enumerate(names.items()):
        files[path] = picture(seed, PHOTO)
        filename = path.partition("/")[2]
        rows.append({"filename": filename, "split": split, "sentences": sentences})
    files["dataset_coco.json"] = {"images": rows}
    return files


def coco():
    files = {}
    numbers_by_split = {"train2017": (9, 25, 234748), "val2017": (139,)}
    for split, numbers in numbers_by_split.items():
        rows = []
        for number in numbers:
            files[f"{split}/{number:012d}.jpg"] = picture(number, (640, 480))
            for i in range(5):
                rows.append({"image_id": number, "caption": f"Caption {i} \n of {number}."})
        files[f"annotations/captions_{split}.json"] = {"annotations": rows}
    return files


VIDEOS = [f"{letter}-_bcdefghij"[:11] for letter in "ABCDEFGYZ"]
AUDIOCAPS_NAMES = [
    "{}.wav",
    "Y{}.wav",
    "{}_30.flac",
    "{}_30_40.wav",
    "Y{}_30000_40000.wav",
    "{}_30.000_40.000.ogg",
    None,
    "{}.wav",
    "{}_99.wav",
]


def audiocaps():
    """Nine training clips of which seven are there, under all kinds of names; one clip each in val and test."""
    header = "audiocap_id,youtube_id,start_time,caption"
    files = {}
    rows = []
    for i, (video, name) in enumerate(zip(VIDEOS, AUDIOCAPS_NAMES, strict=True)):
        rows.append(f'{91000 + i},{video},30,"Sound {i}, and so on ."')
        if name:
            files[f"sounds/{name.format(video)}"] = 1 + i / 10
    files["dataset/train.csv"] = lines(header, *rows)
    for split, video in {"val": "v" * 11, "test": "t" * 11}.items():
        rows = [f"{455000 + i},{video},0,{split} {i}" for i in range(5)]
        files[f"sounds/{split}/{video}.wav"] = 12.0
        files[f"dataset/{split}.csv"] = lines(header, *rows)
    return files


def clotho():
    header = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
    captions = ",".join(f"It rains {i}." for i in range(5))
    names_by_split = {
        "development": ("Rain, 1.wav", "b.wav"),
        "evaluation": ("c.wav",),
        "validation": (),
    }
    files = {}
    for split, names in names_by_split.items():
        rows = [f'"{name}",{captions}' for name in names]
        files[f"clotho_captions_{split}.csv"] = lines(header, *rows)
        for name in names:
            files[f"{split}/{name}"] = 2.0
    return files


def macs():
    table = """\
files:
- {filename: airport-lisbon-0-0-a.wav, annotations: [{sentence: 'people talk .'}, {sentence: a child laughs}]}
- {filename: public_square-paris-1-2-a.wav, annotations: [{sentence: footsteps}]}
"""
    return {"MACS.yaml": table, "TAU/audio/airport-lisbon-0-0-a.wav": 2.0}


def vggsound():
    """Three clips and a video."""
    table = lines(
        "---g-f_I2yQ,1,people marching,test",
        '--0PQM4-hqg,30,"playing violin, fiddle",train',
        "ttttttttttt,0,people marching,train",
        "gonegonegon,5,waterfall,train",
    )
    return {
        "vggsound.csv": table,
        "clips/---g-f_I2yQ_000001.wav": 2.0,
        "clips/--0PQM4-hqg_000030.flac": 2.0,
        "clips/ttttttttttt_000000.wav": 2.0,
        "clips/gonegonegon_000005.mp4": "a video",
    }


def imagenet():
    """Three of the 1,000 classes: tench (0), and the two of one name, missile (657, 744)."""
    files = {}
    for seed, wnid in enumerate(("n01440764", "n03773504", "n04008634")):
        files[f"train/{wnid}/{wnid}_{seed}.JPEG"] = picture(10 + seed, (300, 400))
        files[f"val/{wnid}/ILSVRC2012_val_0000000{seed}.JPEG"] = picture(seed, (60, 48))
    return files


def urbansound8k():
    """Three folds of two classes; one file is missing."""
    files = {}
    rows = []
    for fold in (1, 2, 10):
        for target, label in enumerate(("air_conditioner", "car_horn")):
            for i in (0, 1):
                name = f"{100 + fold}-{target}-0-{i}.wav"
                rows.append(f"{name},{100 + fold},0.0,4.0,1,{fold},{target},{label}")
                files[f"UrbanSound8K/audio/fold{fold}/{name}"] = 0.2
    del files["UrbanSound8K/audio/fold1/101-0-0-0.wav"]
    header = "slice_file_name,fsID,start,end,salience,fold,classID,class"
    files["UrbanSound8K/metadata/UrbanSound8K.csv"] = lines(header, *rows)
    return files


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
        tiny_imagenet,
        flickr8k,
        flickr30k,
        coco_karpathy,
        coco,
        audiocaps,
        clotho,
        macs,
        vggsound,
        imagenet,
        urbansound8k,
        fsd50k,
    )
}
