"""Classes for Hugging Face transformers; importing this package registers them with its Auto classes.

    from transformers import AutoModel, AutoProcessor, pipeline
    from onepeace.plugins.transformers import OnePeaceModel, OnePeaceProcessor

    OnePeaceModel.from_onepeace("tiny").save_pretrained("tiny-hf")  # as for onepeace.load; or push_to_hub
    OnePeaceProcessor.from_onepeace("tiny").save_pretrained("tiny-hf")  # onepeace.load takes that folder too

    pipeline("zero-shot-image-classification", "tiny-hf")("cat.jpg", candidate_labels=["a cat", "a dog"])
    model, processor = AutoModel.from_pretrained("tiny-hf"), AutoProcessor.from_pretrained("tiny-hf")
    model(**processor(text=["a cat"], images=["cat.jpg"], return_tensors="pt")).logits_per_image

Every class wraps our module and adds no computation. Classifiers of images and their feature maps, for dense heads, are
those of timm (see `onepeace.plugins.timm`); `onepeace finetune` trains classifiers of sounds.
"""

import transformers

from onepeace.plugins.transformers.modeling import (
    OnePeaceConfig,
    OnePeaceModel,
    OnePeaceOutput,
)
from onepeace.plugins.transformers.processing import (
    OnePeaceAudioTextProcessor,
    OnePeaceFeatureExtractor,
    OnePeaceImageProcessor,
    OnePeaceImageTextProcessor,
    OnePeaceProcessor,
    OnePeaceTokenizer,
)

__all__ = [
    "OnePeaceAudioTextProcessor",
    "OnePeaceConfig",
    "OnePeaceFeatureExtractor",
    "OnePeaceImageProcessor",
    "OnePeaceImageTextProcessor",
    "OnePeaceModel",
    "OnePeaceOutput",
    "OnePeaceProcessor",
    "OnePeaceTokenizer",
]

transformers.AutoConfig.register(OnePeaceConfig.model_type, OnePeaceConfig, exist_ok=True)
for auto in (transformers.AutoModel, transformers.AutoModelForZeroShotImageClassification):
    auto.register(OnePeaceConfig, OnePeaceModel, exist_ok=True)
transformers.AutoTokenizer.register(OnePeaceConfig, fast_tokenizer_class=OnePeaceTokenizer, exist_ok=True)
transformers.AutoImageProcessor.register(OnePeaceConfig, OnePeaceImageProcessor, exist_ok=True)
transformers.AutoFeatureExtractor.register(OnePeaceConfig, OnePeaceFeatureExtractor, exist_ok=True)
transformers.AutoProcessor.register(OnePeaceConfig, OnePeaceProcessor, exist_ok=True)
for processor in (OnePeaceImageTextProcessor, OnePeaceAudioTextProcessor):
    # A saved processor is looked up by its name among the registered ones, whatever they are registered for.
    transformers.AutoProcessor.register(processor, processor, exist_ok=True)
