"""A language model that reads our features: a projector into its embeddings, in the form of transformers' Llava.

    from onepeace.bridge import Bridge, fit, read_conversations

    bridge = Bridge.new("tiny", "HuggingFaceTB/SmolLM2-135M")  # any causal language model of transformers
    fit(bridge, read_conversations("llava.json", bridge.keys, "media"), "dog-llava", num_train_epochs=1)
    bridge.generate("<audio>\\nWhat is heard?", audio="dog.ogg", options={"max_new_tokens": 20})

The folder is an ordinary Llava model for pictures, `LlavaForConditionalGeneration.from_pretrained("dog-llava")` after
`import onepeace.plugins.transformers`. `Bridge.load("dog-llava", "tiny")` has the other modalities too. The encoder
is frozen always; the language model is, unless low-rank adapters are asked for.
"""

from .conversations import read_conversations
from .model import Bridge
from .train import fit

__all__ = ["Bridge", "fit", "read_conversations"]
