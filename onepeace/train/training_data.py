"""Access to the training data for the terms' `Term.prepare`, before the first step."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
        processor = self.processors["text"]
        return processor.collate([processor.decode(text) for text in texts])

    def features(self, teacher: TeacherOptions, modality: str, output: str = "features") -> TeacherTable:
        """Table of a teacher's outputs for all items or captions of the sources, computed once and kept on disk.

        Args:
            modality: "text" for the captions, another one for the items.
            output: "features" or "scores".

        Raises:
            UserError: the teacher cannot be loaded, or two items of one name differ.
        """
        items: dict[str, Any]
        if modality == "text":
            items = dict.fromkeys(self._captions())
        else:
            items = self._items(modality, f"a teacher's {output}")
        load = self._loader(modality)

        def read(name: str) -> Any:
            return name if modality == "text" else load(items[name].read(modality))

        return teacher_table(teacher, items, read, self.frozen_folder, modality, output)

    def _captions(self) -> list[str]:
        """All captions, sorted by length, as a teacher pads to the longest of a batch."""
        captions: set[str] = set()
        for source in self.sources:
            captions.update(captions_of(self.config, source.samples))
        return sorted(captions, key=lambda text: (len(text), text))

    def _items(self, modality: str, what: str) -> dict[str, Sample]:
        """Samples of a modality by key."""
        samples = []
        for source in self.sources:
            samples += [sample for sample in source.samples if modality in sample.inputs]
        return by_name(samples, modality, what)

    def _loader(self, modality: str) -> Callable[[Any], Any]:
        """Function from a file to a teacher's input: sounds at the teachers' rate, cut to the model's limit."""
        processor = self.processors[modality]
        if modality != "audio":
            return processor.load
        sounds = AudioProcessor(sample_rate=SAMPLE_RATE)
        return partial(sounds.load, seconds=processor.max_seconds)

    def keep_task(self, options: TermOptions, name: str, task: Task) -> None:
        """Add a task to store with the weights; UserError if another term has a different one of this name."""
        if self.tasks.setdefault(name, task) != task:
            raise UserError(f"its task {name} differs from another term's; make them the same", where=options.where)


def captions_of(config: DataConfig, samples: Iterable[Sample]) -> list[str]:
    """Captions of the samples, and the templates filled with their labels; samples are read once, one at a time."""
    texts: list[str] = []
    labels: set[str] = set()
    for sample in samples:
        texts += sample.captions
        if sample.label:
            labels.add(sample.label)
    for label in sorted(labels):
        for templates in config.templates.values():
            texts += [template.format(label) for template in templates]
    return texts
