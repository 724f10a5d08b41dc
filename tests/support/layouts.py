"""What is read of a sample that a layout has written."""

import io

from PIL import Image


def captions(sample):
    return sample.about["captions"]


def media(sample):
    return next(data for modality, data in sample.inputs.items() if modality != "text")


def size_of(sample):
    return Image.open(io.BytesIO(media(sample))).size


def wave_of(sample):
    import soundfile

    return soundfile.read(io.BytesIO(media(sample)))
