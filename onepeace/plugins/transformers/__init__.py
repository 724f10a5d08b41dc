"""Classes for Hugging Face transformers; importing this package registers them with its Auto classes.

    from transformers import AutoModel, AutoProcessor, pipeline
    from onepeace.plugins.transformers import OnePeaceModel, OnePeaceProcessor

    OnePeaceModel.from_onepeace("tiny").save_pretrained("tiny-hf")  # as for onepeace.load; or push_to_hub
    OnePeaceProcessor.from_onepeace("tiny").save_pretrained("tiny-hf")  # onepeace.load takes that folder too

    pipeline("zero-shot-image-classification", "tiny-hf")("cat.jpg", candidate_labels=["a cat", "a dog"])
    model, processor = AutoModel.from_pretrained("tiny-hf"), AutoProcessor.from_pretrained("tiny-hf")
    model(**processor(text=["a cat"], images=["cat.jpg"], return_tensors="pt")).logits_per_image

Every class wraps our module and adds no computation. A part of a model can be loaded from the files of the whole:
`OnePeaceForImageClassification.from_pretrained("tiny-hf", num_labels=10)`, or `OnePeaceVisionModel`.
"""

import transformers

from .backbones import OnePeaceAudioModel, OnePeaceImageBackbone, OnePeaceVisionModel
from .classification import (
    OnePeaceForAudioClassification,
    OnePeaceForImageClassification,
    OnePeaceForVisualQuestionAnswering,
)
from .configuration import OnePeaceAudioConfig, OnePeaceConfig, OnePeaceVisionConfig
from .modeling import OnePeaceModel, OnePeaceOutput, OnePeacePreTrainedModel
from .processing import (
    OnePeaceAudioTextProcessor,
    OnePeaceFeatureExtractor,
    OnePeaceImageProcessor,
    OnePeaceImageTextProcessor,
    OnePeaceProcessor,
)
from .tokenization import OnePeaceTokenizer

__all__ = [
    "OnePeaceAudioConfig",
    "OnePeaceAudioModel",
    "OnePeaceAudioTextProcessor",
    "OnePeaceConfig",
    "OnePeaceFeatureExtractor",
    "OnePeaceForAudioClassification",
    "OnePeaceForImageClassification",
    "OnePeaceForVisualQuestionAnswering",
    "OnePeaceImageBackbone",
    "OnePeaceImageProcessor",
    "OnePeaceImageTextProcessor",
    "OnePeaceModel",
    "OnePeaceOutput",
    "OnePeacePreTrainedModel",
    "OnePeaceProcessor",
    "OnePeaceTokenizer",
    "OnePeaceVisionConfig",
    "OnePeaceVisionModel",
]

for config in (OnePeaceConfig, OnePeaceVisionConfig, OnePeaceAudioConfig):
    transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
for auto, models in {
    transformers.AutoModel: (OnePeaceModel, OnePeaceVisionModel, OnePeaceAudioModel),
    transformers.AutoModelForZeroShotImageClassification: (OnePeaceModel,),
    transformers.AutoModelForImageClassification: (OnePeaceForImageClassification,),
    transformers.AutoModelForAudioClassification: (OnePeaceForAudioClassification,),
    transformers.AutoModelForVisualQuestionAnswering: (OnePeaceForVisualQuestionAnswering,),
    transformers.AutoBackbone: (OnePeaceImageBackbone,),
}.items():
    for model in models:
        auto.register(model.config_class, model, exist_ok=True)
transformers.AutoTokenizer.register(OnePeaceConfig, fast_tokenizer_class=OnePeaceTokenizer, exist_ok=True)
for config in (OnePeaceConfig, OnePeaceVisionConfig):
    transformers.AutoImageProcessor.register(config, OnePeaceImageProcessor, exist_ok=True)
for config in (OnePeaceConfig, OnePeaceAudioConfig):
    transformers.AutoFeatureExtractor.register(config, OnePeaceFeatureExtractor, exist_ok=True)
transformers.AutoProcessor.register(OnePeaceConfig, OnePeaceProcessor, exist_ok=True)
# A processor's class is looked up by its name among the registered ones, regardless of the configuration.
transformers.AutoProcessor.register(OnePeaceVisionConfig, OnePeaceImageTextProcessor, exist_ok=True)
transformers.AutoProcessor.register(OnePeaceAudioConfig, OnePeaceAudioTextProcessor, exist_ok=True)
