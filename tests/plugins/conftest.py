"""Three items of each modality, no two of the same size, and the random model in transformers."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def texts():
    return ["a dog barking", "", "two cats on a very long and very wide sofa, and a third one"]


@pytest.fixture(scope="session")
def pictures():
    generator = np.random.default_rng(0)
    pictures = []
    for height in (20, 21, 22):
        pixels = generator.integers(0, 256, (height, 30, 3), np.uint8)
        pictures.append(Image.fromarray(pixels))
    return pictures


@pytest.fixture(scope="session")
def sounds():
    """Samples at 16 kHz, of 0.5 to 1 s."""
    generator = np.random.default_rng(0)
    lengths = (8000, 12000, 16000)
    return [generator.normal(0, 0.1, length).astype(np.float32) for length in lengths]


@pytest.fixture(scope="session")
def random_name(random_folder):
    """The random model's name for `from_onepeace`."""
    return str(random_folder)


@pytest.fixture(scope="module")
def processor(random_name):
    from onepeace.plugins.transformers import OnePeaceProcessor

    return OnePeaceProcessor.from_onepeace(random_name)


@pytest.fixture(scope="module")
def hf_model(random_name):
    from onepeace.plugins.transformers import OnePeaceModel

    return OnePeaceModel.from_onepeace(random_name).eval()


@pytest.fixture(scope="module")
def saved(hf_model, processor, tmp_path_factory):
    """The folder of that model and its processor."""
    folder = tmp_path_factory.mktemp("saved")
    hf_model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def inputs(processor, pictures, texts, sounds):
    """Arguments of that model for all the items."""
    return processor(images=pictures, text=texts, audio=sounds, sampling_rate=16000, return_tensors="pt")
