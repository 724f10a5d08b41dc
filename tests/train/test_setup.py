"""What a run is made of."""

import pickle

from support.training import recipe

from onepeace.data.reader import open_sources
from onepeace.train import setup
from onepeace.train.run import make_steps
from onepeace.train.start import make_config


def test_workers_get_no_weights_of_the_model(root, tmp_path):
    """Spawned workers unpickle their data set: numbers of tokens are told from the configuration alone."""
    wanted = recipe(root, tmp_path, model={"size": "base", "modalities": ["text", "image"]})
    config = make_config(wanted)
    sources = open_sources(wanted.data)
    setup.make_tokenizer(wanted, sources, tmp_path / "tokenizer.json")
    steps = make_steps(wanted, sources, setup.make_processors(config, tmp_path), config, {})
    assert len(pickle.dumps(steps.builder.num_tokens)) < 100_000  # one embedding table is 150 MB
    sent = pickle.loads(pickle.dumps(steps))  # noqa: S301
    (batch,) = sent[0][0]
    assert sent.builder.num_tokens["image"](batch.inputs["image"]).tolist() == [1] * 24
    ids = batch.inputs["text"]["ids"]
    assert sent.builder.num_tokens["text"](batch.inputs["text"]).tolist() == (ids != 1).sum(1).tolist()
