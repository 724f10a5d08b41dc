"""Access to the training data for the terms' `Term.prepare`, before the first step."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.data.batch import Inputs
from onepeace.data.config import DataConfig
from onepeace.data.reader import Source
from onepeace.data.sample import Sample, by_name
from onepeace.errors import UserError
from onepeace.generative.tasks import Task
from onepeace.processors import AudioProcessor
from onepeace.train.teachers import TeacherOptions, TeacherTable, teacher_table
from onepeace.train.teachers.networks import SAMPLE_RATE
from onepeace.train.term_options import TermOptions, sources_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TrainingData:
    """Sources and processors of a recipe, for `Term.prepare`.

    Args:
        config: the recipe's data section.
        sources: its sources, in its order.
        processors: processors by modality.
        frozen_folder: folder of the outputs of teachers.
        start_folder: folder of the model that training starts from; None = random weights.
    """

    def __init__(
        self,
        config: DataConfig,
        sources: Sequence[Source],
        processors: Mapping[str, Any],
        frozen_folder: Path,
        start_folder: Path | None,
    ) -> None:
        self.config = config
        self.sources = sources
        self.processors = processors
        self.frozen_folder = frozen_folder
        self.start_folder = start_folder
        self.tasks: dict[str, Task] = {}
        """Tasks of a generative model by name; see `keep_task`."""

    @property
    def tokenizer(self) -> "Tokenizer":
        """The model's tokenizer."""
        return self.processors["text"].tokenizer

    def samples(self, options: TermOptions) -> Iterator[Sample]:
        """Samples of the sources of a term."""
        names = {source.name for source in sources_of(options, self.config)}
        for source in self.sources:
            if source.config.name in names:
                yield from source.samples

    def texts(self, texts: Sequence[str]) -> Inputs:
        """Model input of texts."""
        text = self.processors["text"]
        return text.collate([text.decode(one) for one in texts])

    def features(self, teacher: TeacherOptions, modality: str, output: str = "features") -> TeacherTable:
        """Table of a teacher's outputs for all items or captions of the sources, computed once and kept on disk.

        Args:
            modality: "text" for the captions, another one for the items.
            output: "features" or "scores".

        Raises:
            UserError: the teacher cannot be loaded, or two items of one name differ.
        """
        root = self.frozen_folder
        if modality == "text":
            captions = {text for source in self.sources for text in captions_of(self.config, source.samples)}
            # Sorted by length, as the teacher pads to the longest of a batch.
            names = sorted(captions, key=lambda text: (len(text), text))
            return teacher_table(teacher, dict.fromkeys(names), lambda text: text, root, modality, output)
        samples = [sample for source in self.sources for sample in source.samples if modality in sample.inputs]
        items = by_name(samples, modality, f"a teacher's {output}")
        read = self.processors[modality].load
        if modality == "audio":  # at the teachers' rate, cut to the model's limit
            sounds = AudioProcessor(sample_rate=SAMPLE_RATE)
            read = partial(sounds.load, seconds=getattr(self.processors[modality], "max_seconds", None))
        return teacher_table(teacher, items, lambda name: read(items[name].read(modality)), root, modality, output)

    def keep_task(self, options: TermOptions, name: str, task: Task) -> None:
        """Add a task to store with the weights; UserError if another term has a different one of this name."""
        if self.tasks.setdefault(name, task) != task:
            raise UserError(f"{options.where}: its task {name} is not that of another term; make them the same")


def captions_of(config: DataConfig, samples: Iterable[Sample]) -> list[str]:
    """Captions of the samples, and the templates filled with their labels; samples are read once, one at a time."""
    templates = [template for group in config.templates.values() for template in group]
    texts: list[str] = []
    labels: set[str] = set()
    for sample in samples:
        texts += sample.captions
        labels |= {sample.label} if sample.label else set()
    return texts + [template.format(label) for label in sorted(labels) for template in templates]
