"""Fine-tuning on own data from the first look at it to the report. What is done is kept: the same call goes on."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from onepeace.config import build, to_plain
from onepeace.device import available_memory, choose_device
from onepeace.embed.embedder import load
from onepeace.errors import UserError
from onepeace.evaluate.report import as_json
from onepeace.files.atomic import write_text_atomic
from onepeace.finetune import measure
from onepeace.finetune.average import UNTRIED, Average, choose, mixed
from onepeace.finetune.memory import fitting_recipe
from onepeace.finetune.own_data import OwnData, counts_of, read_own_data, write_shards
from onepeace.finetune.report import write_report
from onepeace.finetune.settings import auto_recipe, head_names, trained
from onepeace.generative.tasks import FILE as TASKS
from onepeace.hub import weights
from onepeace.hub.fingerprint import fingerprint
from onepeace.hub.folder import CARD, TOKENIZER, read_config
from onepeace.train.folder import model_folder
from onepeace.train.loop import train
from onepeace.train.recipe import Recipe
from onepeace.train.start import start_weights

log = logging.getLogger(__name__)

ABOUT, PARTS, LABELS = "finetune.json", "parts.json", "labels.json"
BEFORE, AFTER, REPORT = "before.jsonl", "after.jsonl", "report.html"
SETTINGS, TUNED, AVERAGE = "settings.json", "tuned", "average.json"


@dataclass(frozen=True)
class FineTuning:
    """A fine-tuning in a folder: data/ (shards), the run's own files, before.jsonl, average.json, after.jsonl,
    report.html, model/.

    Args:
        source: the user's folder or table.
        out: the folder.
        model: what to start from: a name or a folder.
        overrides: fields of the recipe, as "optim.lr=1e-4".
        say: gets a line for the user at each stage.
    """

    source: Path
    out: Path
    model: str = "tiny"
    overrides: tuple[str, ...] = ()
    say: Callable[[str], None] = log.warning

    @property
    def data(self) -> Path:
        return self.out / "data"

    def run(self, overwrite: bool = False) -> Path:
        """Everything that is not done yet; returns the report.

        Raises:
            UserError: data that nothing can be learned from; a folder with another fine-tuning in it.
        """
        counts, labels, recipe = self._begun(overwrite)
        pairs = [name.removeprefix("val/") for name in counts if name.startswith("val/")]
        heads = head_names(pairs) if labels else {}
        self._measured(BEFORE, self.start, pairs, labels, {})
        if not (self.out / AVERAGE).exists():
            self._averaged(self._tuned(recipe), recipe, counts, labels, heads)
        average = Average(**json.loads((self.out / AVERAGE).read_text(encoding="utf-8")))
        self.say(average.described())
        self._measured(AFTER, self.out / "model", pairs, labels, heads)
        return write_report(self, recipe, average, counts, labels, pairs)

    @property
    def start(self) -> Path:
        """Folder of the model to start from."""
        return model_folder(self.model)

    def _begun(self, overwrite: bool) -> tuple[dict[str, int], list[str], Recipe]:
        """Samples by "train/image+text" and so on, the class names and the settings.

        The folder becomes this fine-tuning's own, and loses what it had, once all of them were read and checked.
        """
        modalities = list(read_config(self.start).model.adapters)
        about = {"source": os.path.abspath(self.source), "model": fingerprint(self.start), "set": list(self.overrides)}
        self._refuse_another(about, overwrite)
        data = None
        if overwrite or not (self.data / PARTS).exists():
            data = read_own_data(self.source, modalities)
            self.say(f"{self.source}: {data.described()}{_left_out(data)}")
            counts, labels = counts_of(data), data.labels
        else:
            counts = json.loads((self.data / PARTS).read_text(encoding="utf-8"))["counts"]
            labels = json.loads((self.data / LABELS).read_text(encoding="utf-8"))
        recipe = self._recipe(counts, labels, anew=data is not None)
        if overwrite and self.out.exists():
            shutil.rmtree(self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        write_text_atomic(self.out / ABOUT, json.dumps({**about, "name": self.model}, indent=1) + "\n")
        write_text_atomic(self.out / SETTINGS, json.dumps(to_plain(recipe), indent=1) + "\n")
        if data is not None:
            write_shards(data, self.data)
            write_text_atomic(self.data / LABELS, json.dumps(labels, ensure_ascii=False, indent=1) + "\n")
            left_out = [list(one) for one in data.left_out]
            content = json.dumps({"counts": counts, "left_out": left_out, "found": data.described()}, indent=1)
            write_text_atomic(self.data / PARTS, f"{content}\n")
        return counts, labels, recipe

    def _refuse_another(self, about: Mapping[str, object], overwrite: bool) -> None:
        """`UserError` if the folder is not for this fine-tuning."""
        path, needed = self.out / ABOUT, self._needed_of_out()
        if not path.exists():
            if self.out.is_dir() and any(self.out.iterdir()):
                raise UserError(f"{self.out}: is not empty, and no fine-tuning; give -o another folder")
        elif overwrite:
            if needed:
                raise UserError(
                    f"{needed} is in {self.out}, which --force removes, and is needed; give -o another folder"
                )
        else:
            other = json.loads(path.read_text(encoding="utf-8"))
            if field := next((field for field in about if other.get(field) != about[field]), None):
                before, now = other.get(field), about[field]
                if field == "model":
                    before, now = f"{other.get('name')} ({before})", f"{self.model} ({now})"
                remedy = "give -o another folder" + ("" if needed else ", or --force")
                raise UserError(
                    f"{self.out} holds a fine-tuning with another {field}, {before} and not {now}; {remedy}"
                )

    def _needed_of_out(self) -> Path | None:
        """What a new fine-tuning would need of the one that is there: its model or its data."""
        out = self.out.resolve()
        return next((path for path in (self.start, self.source) if path.resolve().is_relative_to(out)), None)

    def _recipe(self, counts: Mapping[str, int], labels: Sequence[str], anew: bool) -> Recipe:
        """The settings, chosen once: when it goes on, the memory may be another."""
        path = self.out / SETTINGS
        if path.exists() and not anew:
            recipe = build(Recipe, json.loads(path.read_text(encoding="utf-8")), str(path))
        else:
            content = auto_recipe(self.start, self.data, self.out, counts, labels)
            device = choose_device()
            memory = available_memory(device)
            recipe = fitting_recipe(content, self.overrides, memory, self.say)
        run = recipe.run
        names = recipe.data.modalities
        settings = {
            "steps": recipe.schedule.steps,
            "items a step": ", ".join(f"{recipe.batch_size(name)} {name}" for name in names),
            "rate": recipe.optim.lr,
            "training": trained(recipe),
        }
        if run.checkpoint_activations:
            settings["activations"] = "computed again"
        if run.grad_cache_chunks > 1:
            settings["parts of a step"] = run.grad_cache_chunks
        self.say(", ".join(f"{name} {value}" for name, value in settings.items()) + " (a.b=value sets another)")
        return recipe

    def _tuned(self, recipe: Recipe) -> Path:
        """Folder of the model as it was trained: beside that which is the result of all this."""
        tuned, model = self.out / TUNED, self.out / "model"
        if not tuned.exists():
            if not (model / "config.yaml").exists():
                self.say(f"training {recipe.schedule.steps} steps")
                if not (train(recipe) / "config.yaml").exists():
                    raise UserError(f"{self.out}: stopped; the same command goes on")
            os.replace(model, tuned)
        return tuned

    def _averaged(
        self, tuned: Path, recipe: Recipe, counts: Mapping[str, int], labels: Sequence[str], heads: Mapping[str, str]
    ) -> None:
        """Write the model with the weights averaged with the start's, how they were, and remove the one before."""
        config = read_config(tuned)
        start = start_weights(recipe, config, weights.expected(config))
        new = weights.read_state(tuned)
        parts = {name.removeprefix("choose/"): count for name, count in counts.items() if name.startswith("choose/")}
        if parts:
            model = load(tuned, device=str(choose_device()))

            def score() -> float:
                names = Path(LABELS) if labels else None
                return measure.score(measure.figures(model, self.data, list(parts), names, heads, "choose"))

            average = choose(model.module, start, new, score, sum(parts.values()))
        else:
            average = Average(1.0 if heads else UNTRIED)
        found = {name: mixed(start.get(name), tensor, average.share) for name, tensor in new.items()}
        card = f"{(tuned / CARD).read_text(encoding='utf-8')}\nWeights {average.described()}.\n"
        tasks = tuned / TASKS if (tuned / TASKS).exists() else None
        tokenizer = tuned / TOKENIZER if (tuned / TOKENIZER).exists() else None
        weights.save(self.out / "model", found, config, tokenizer=tokenizer, tasks=tasks, card=card)
        write_text_atomic(self.out / AVERAGE, json.dumps(asdict(average), indent=1) + "\n")
        shutil.rmtree(tuned)

    def _measured(
        self, name: str, folder: Path, pairs: Sequence[str], labels: Sequence[str], heads: Mapping[str, str]
    ) -> None:
        """Write the figures of a model on the held-out part, unless they are there."""
        path = self.out / name
        if path.exists():
            return
        model = load(folder, device=str(choose_device()))
        rows = measure.figures(model, self.data, pairs, Path(LABELS) if labels else None, heads)
        write_text_atomic(path, "".join(f"{as_json(row, {'model': str(folder)}, per_query=True)}\n" for row in rows))


def _left_out(data: OwnData) -> str:
    """How many could not be used, and the first of them."""
    if not data.left_out:
        return ""
    first = "; ".join(f"{where}: {reason}" for where, reason in data.left_out[:3])
    more = f" and {len(data.left_out) - 3} more" if len(data.left_out) > 3 else ""
    return f"; {len(data.left_out)} left out: {first}{more}"
