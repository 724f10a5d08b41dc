"""The mteb model, against mteb itself: its made-up tasks, and vectors equal to our own."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it: no task may ask the network

import numpy as np
import pytest
from PIL import Image
from support import torchcodec_stub

KINDS = {
    "text": "MockRetrievalTask",
    "image": "MockImageClassification",
    "image and text": "MockImageTextPairClassification",
    "image labels": "MockZeroShotClassification",
    "audio": "MockAudioClassification",
    "audio and text": "MockAny2AnyRetrievalT2A",
    "audio pairs": "AbsTaskAudioPairClassification",
}
"""One task of each modality, and of some kinds."""


@pytest.fixture(scope="module")
def encoder(random_folder):
    pytest.importorskip("mteb")  # here, so that only the process that runs these tests waits for it
    from onepeace.plugins.mteb import MtebEncoder

    return MtebEncoder(str(random_folder), device="cpu")


@pytest.fixture(autouse=True)
def _sounds(monkeypatch):
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        torchcodec_stub.install(monkeypatch)


def encode(encoder, batches):
    return encoder.encode(batches, task_metadata=None, hf_split="test", hf_subset="default")


def test_it_is_an_encoder_of_three_modalities(encoder):
    from mteb.models.models_protocols import EncoderProtocol

    assert isinstance(encoder, EncoderProtocol)
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.embed_dim, sorted(meta.modalities)) == ("onepeace/model", 16, ["audio", "image", "text"])
    assert meta.n_parameters == sum(parameter.numel() for parameter in encoder.model.module.parameters())


def test_vectors_are_those_of_the_embedder(encoder):
    random = np.random.default_rng(0)
    texts = ["a dog", "", "two cats"]
    pictures = [Image.fromarray(random.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)) for i in range(3)]
    sounds = [{"array": random.normal(0, 0.1, 8000 + 1000 * i), "sampling_rate": 8000} for i in range(3)]
    own = encoder.model
    both = [{"text": texts[:2], "audio": sounds[:2]}, {"text": texts[2:], "audio": [None]}]
    pairs = [{"text": texts[i], "audio": sounds[i]} for i in (0, 1)]
    cases = [
        ([{"text": texts[:2]}, {"text": texts[2:]}], own.encode_text(texts)),
        ([{"image": pictures[:2]}, {"image": pictures[2:], "label": [1]}], own.encode_image(pictures)),
        ([{"audio": sounds}], own.encode_audio(sounds)),
        (both, own.encode([*pairs, {"text": texts[2]}])),
    ]
    for batches, want in cases:
        got = encode(encoder, batches)
        assert (got.shape, got.dtype) == ((3, 16), np.float32)
        np.testing.assert_allclose(got, want.numpy(), atol=1e-5)
        np.testing.assert_allclose(np.diag(encoder.similarity(got, got)), 1, atol=1e-5)
        np.testing.assert_allclose(
            encoder.similarity_pairwise(got, np.roll(got, 1, 0)), (got * np.roll(got, 1, 0)).sum(1), atol=1e-5
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_made_up_task_of_each_kind_passes(encoder, kind):
    import mteb
    from mteb.mocks import ALL_MOCK_TASK_TEST_GRID

    (task,) = [task for task in ALL_MOCK_TASK_TEST_GRID if task.metadata.name == KINDS[kind]]
    (result,) = mteb.evaluate(encoder, [task], cache=None, show_progress_bar=False).task_results
    assert np.isfinite(result.get_score())
