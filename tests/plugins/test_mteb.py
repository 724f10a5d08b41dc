"""The mteb model, against mteb itself: its mock tasks, and vectors equal to our own."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it: no task may ask the network

import numpy as np
import pytest
from support import torchcodec_stub
from support.embedding import assert_same

TASKS = [
    "MockRetrievalTask",
    "MockImageClassification",
    "MockAny2AnyRetrievalT2A",
    "AbsTaskAudioPairClassification",
]
"""One of each combination of modalities, and of some kinds."""


@pytest.fixture(scope="module")
def encoder(random_folder):
    pytest.importorskip("mteb")  # here, so that only the process that runs these tests waits for it
    from onepeace.plugins.mteb import MtebEncoder

    return MtebEncoder(str(random_folder), device="cpu")


@pytest.fixture
def recordings(sounds):
    return [{"array": sound, "sampling_rate": 8000} for sound in sounds]


@pytest.fixture(autouse=True)
def _torchcodec(monkeypatch):
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        torchcodec_stub.install(monkeypatch)


def encode(encoder, *batches):
    return encoder.encode(batches, task_metadata=None, hf_split="test", hf_subset="default")


def test_description_of_the_model(encoder, model):
    from mteb.models.models_protocols import EncoderProtocol

    description = encoder.mteb_model_meta

    assert isinstance(encoder, EncoderProtocol)
    assert description.name == "onepeace/model"
    assert description.embed_dim == 16
    assert set(description.modalities) == {"audio", "image", "text"}
    assert description.n_parameters == sum(parameter.numel() for parameter in model.module.parameters())


def test_vectors_of_pairs(encoder, texts, recordings, model):
    """In a data set of mixed modalities a row may lack one."""
    batches = [
        {"text": texts[:1], "audio": recordings[:1]},
        {"text": texts[1:], "audio": [recordings[1], None]},
    ]
    items = [
        {"text": texts[0], "audio": recordings[0]},
        {"text": texts[1], "audio": recordings[1]},
        {"text": texts[2]},
    ]
    assert_same(encode(encoder, *batches), model.encode(items))


@pytest.mark.parametrize("name", TASKS)
def test_mteb_measures_its_mock_tasks(encoder, name):
    import mteb
    from mteb.mocks import ALL_MOCK_TASK_TEST_GRID

    (task,) = [task for task in ALL_MOCK_TASK_TEST_GRID if task.metadata.name == name]
    results = mteb.evaluate(encoder, [task], cache=None, show_progress_bar=False)

    assert np.isfinite(results.task_results[0].get_score())
