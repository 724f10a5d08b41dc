"""Does a projector that has seen pictures alone lead sounds into a language model?

PandaGPT (arXiv 2305.16355) feeds sounds through a projector that was trained on pictures, because the encoder puts
both into one space; it gives no numbers. This study does, at the size of the bundled model:

    python recipes/bridge/transfer.py --data FOLDER --out FOLDER [--seeds 3]

1. A Llama of 1.5 M parameters, with a BPE vocabulary of its own, is trained on captions as text: those of Flickr8k and
   the sentences of the named pictures and of the sounds. It stays frozen from then on, and is the same for all seeds.
2. `onepeace.bridge` trains a projector on pictures with captions, and another on sounds (ESC-50, folds 1 to 4), from
   three kinds of features: tokens of the last block, the CLS token alone, the unit vector of the shared space alone.
3. Sounds of ESC-50's fold 5 are fed. For each class the language model says how likely its sentence ("a dog barking")
   is after the sound, compared with how likely it is after nothing; the best class is the answer. That asks what
   the bridge carries and not how well so small a model writes: a generated caption would need a judge, and its
   wording is mostly a matter of the kind of pictures.
   The log-likelihood without sound is taken away because some sentences are shorter or more usual than others.
   "Balanced" also takes away what each sentence gets on average over the sounds that are measured (no labels): what
   sounds have in common, and pictures lack, favours the same few sentences for all of them.

Sounds reach the projector of pictures as they are ("raw"), with their mean moved to that of pictures ("centred"), or
with mean and deviation of every channel moved ("z-norm"); statistics are those of the training sets, without labels.
"Pictured" are the classes whose name has all its words in the names of the pictures (dog, helicopter); no picture
shows a sneeze. Features and results are kept in --out, and what is there is not computed again.
"""

import argparse
import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onepeace  # first, for its guard around torchaudio
from onepeace.bridge import Bridge, fit
from onepeace.bridge.conversations import Conversation
from onepeace.processors.pieces import clean_text
from onepeace.processors.tokenizer import SPECIALS, train_bpe

import torch  # isort: skip
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from transfer_data import features, name_of, named_pictures, read, words  # isort: skip

KINDS = ("shared", "cls", "tokens")
TEMPLATE = ("{}", " {}")
HELD_OUT = 200
"""Named pictures that no projector sees."""
LENGTH = 64
"""Tokens of the text that the language model sees at once: sentences, one behind the other."""


def language_model(texts: Sequence[str], folder: Path, steps: int) -> None:
    """Trains and writes a small causal language model and its tokenizer."""
    set_seed(0)
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), SPECIALS, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=train_bpe(texts, 2000), **names)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        tie_word_embeddings=True, bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    rows = tokenizer([TEMPLATE[1].format(text) for text in texts], add_special_tokens=False).input_ids
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        stream = [token for row in random.sample(rows, 512) for token in (0, *row, 2)]
        ids = torch.tensor(stream[: 32 * LENGTH]).unflatten(0, (-1, LENGTH))
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"language model: step {step}, loss {loss.item():.2f}", flush=True)
    model.eval().save_pretrained(folder)


@torch.no_grad()
def scores(bridge: Bridge, items: Sequence[Tensor], sentences: Sequence[str]) -> Tensor:
    """(items, sentences): how much likelier each sentence is after an item than after nothing, in nats.

    All sentences stand in one sequence, where each sees the item and itself alone.
    """
    llava, tokenizer = bridge.llava, bridge.processor.tokenizer
    rows = [
        [*tokenizer(TEMPLATE[1].format(text), add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        for text in sentences
    ]
    ids = torch.tensor([token for row in rows for token in row])
    owner = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(row) for row in rows]))
    offset = torch.cat([torch.arange(len(row)) for row in rows])
    embed = llava.get_input_embeddings()
    first = embed(torch.tensor([[tokenizer.bos_token_id]]))

    def likelihood(prefix: Tensor) -> Tensor:
        """(B, sentences) after (B, P, D)."""
        size, start = prefix.shape[1], prefix.shape[1] + offset
        place = torch.cat([torch.arange(size), start])
        group = torch.cat([torch.full((size,), -1), owner])
        seen = (place[:, None] >= place) & ((group == -1) | (group[:, None] == group))
        inputs = torch.cat([prefix, embed(ids).expand(len(prefix), -1, -1)], 1)
        hidden = llava.model.language_model(
            inputs_embeds=inputs,
            attention_mask=seen.expand(len(prefix), 1, -1, -1),
            position_ids=place.expand(len(prefix), -1),
            use_cache=False,
        ).last_hidden_state
        before = torch.where(offset == 0, size - 1, size + torch.arange(len(ids)) - 1)
        logits = llava.lm_head(hidden[:, before]).log_softmax(-1)
        found = logits.gather(2, ids.expand(len(prefix), -1)[:, :, None])[..., 0]
        return torch.zeros(len(prefix), len(rows)).index_add_(1, owner, found)

    alone, found = likelihood(first), []
    for some in torch.stack(list(items)).split(8):
        projected = llava.model.multi_modal_projector(some)
        found.append(likelihood(torch.cat([first.expand(len(some), -1, -1), projected], 1)) - alone)
    return torch.cat(found)


def moved(sounds: Tensor, by: str, own: Tensor, pictures: Tensor) -> Tensor:
    """Sounds with the statistics of pictures; ``own`` and ``pictures`` are features of the training sets."""
    if by == "raw":
        return sounds
    mean, std = own.mean((0, 1)), own.std((0, 1))
    goal_mean, goal_std = pictures.mean((0, 1)), pictures.std((0, 1))
    scale = goal_std / std if by == "z-norm" else 1.0
    return (sounds - mean) * scale + goal_mean


def table(results: dict[str, dict[str, float]]) -> str:
    """Mean and deviation over the seeds, as Markdown."""
    rows: dict[tuple[str, ...], list[dict[str, float]]] = {}
    for name, values in results.items():
        rows.setdefault(tuple(name.split("/")[1:]), []).append(values)
    columns = ("top-1", "top-5", "balanced", "pictured")
    lines = ["| features | trained on | fed | classes | top-1 % | top-5 % | balanced % | of pictured % | seeds |"]
    lines.append("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for (kind, source, fed), found in sorted(rows.items()):
        cells = []
        for column in columns:
            numbers = [100 * one[column] for one in found if column in one]
            spread = f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
            cells.append(f"{statistics.mean(numbers):.1f}{spread}" if numbers else "")
        lines.append(" | ".join([f"| {kind}", source, fed, f"{found[0]['classes']:.0f}", *cells, f"{len(found)} |"]))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    for name, default in {
        "seeds": 3,
        "pictures": 4000,
        "sounds": 1600,
        "val": 400,
        "steps": 1500,
        "lm-steps": 1500,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    def shuffled(pattern: str, key: str, count: int) -> list[Any]:
        samples = read(args.data, pattern, key)
        random.Random(0).shuffle(samples)  # noqa: S311
        return samples[:count]

    val = shuffled("val/esc50_fold5/*.tar*", "audio", args.val)
    sounds = shuffled("train/audio_text/esc50-*.tar*", "audio", args.sounds)
    sentence = {one.label: clean_text(one.captions[0]) for one in read(args.data, "val/esc50_fold5/*.tar*", "audio")}
    named = named_pictures(args.data, list(sentence))[: args.pictures]
    flickr = shuffled("train/image_text/flickr8k-*.tar*", "image", args.pictures)
    shown, named = named[:HELD_OUT], named[HELD_OUT:]
    pictures = named + flickr[: args.pictures - len(named)]
    pictured = {label for label in sentence if words(label) <= set().union(*(words(name_of(one)) for one in named))}

    texts = [clean_text(text) for one in flickr + named + sounds for text in one.captions]
    if not (args.out / "words" / "model.safetensors").exists():
        language_model(texts, args.out / "words", args.lm_steps)
    embedder = onepeace.load(args.model, dtype="float32")
    found = {
        name: features(embedder, samples, key, args.out / f"{name}-{len(samples)}.safetensors")
        for name, samples, key in (
            ("val", val, "audio"),
            ("sounds", sounds, "audio"),
            ("shown", shown, "image"),
            ("pictures", pictures, "image"),
        )
    }

    labels, truth = list(sentence), [one.label for one in val]
    results: dict[str, dict[str, float]] = {}
    file = args.out / "results.json"
    if file.exists():
        results = json.loads(file.read_text())

    def measure(name: str, logits: Tensor, classes: list[str], truth: list[str]) -> None:
        if not logits.isfinite().all():
            raise ValueError(f"{name}: scores are not finite")
        right = torch.tensor([classes.index(one) for one in truth])

        def ranks(scores: Tensor) -> Tensor:
            return (scores > scores.gather(1, right[:, None])).sum(1)

        rank, balanced = ranks(logits), ranks(logits - logits.mean(0))
        of_pictured = torch.tensor([one in pictured for one in truth])
        values = {"classes": len(classes), "top-1": float((rank < 1).float().mean())}
        values["top-5"] = float((rank < 5).float().mean())
        values["balanced"] = float((balanced < 1).float().mean())
        if of_pictured.any() and classes == labels:
            values["pictured"] = float((rank[of_pictured] < 1).float().mean())
        results[name] = values
        file.write_text(json.dumps(results, indent=1))
        print(name, values, flush=True)

    text = torch.as_tensor(embedder.encode_text(list(sentence.values()), progress=False))
    measure("0/shared/the encoder's own text/raw", found["val"]["shared"][:, 0] @ text.T, labels, truth)
    for seed in range(args.seeds):
        for kind in KINDS:
            for source, samples in (("pictures", pictures), ("sounds", sounds)):
                if f"{seed}/{kind}/{source}/raw" in results:
                    continue
                set_seed(seed)
                bridge = Bridge.new(args.model, args.out / "words", template=TEMPLATE)
                pairs = [
                    Conversation([("<image>", clean_text(caption))], [("image", item)])
                    for one, item in zip(samples, found[source][kind], strict=True)
                    for caption in one.captions
                ]
                options = {"max_steps": args.steps, "learning_rate": 2e-3, "seed": seed, "logging_steps": 50}
                fit(bridge, pairs, args.out / f"llava-{kind}-{source}", use_cpu=True, disable_tqdm=True, **options)
                if source == "pictures":
                    names = sorted({name_of(one) for one in named} & {name_of(one) for one in shown})
                    known = [i for i, one in enumerate(shown) if name_of(one) in names]
                    spoken = {name_of(one): clean_text(one.captions[0]) for one in named}
                    logits = scores(bridge, found["shown"][kind][known], [spoken[name] for name in names])
                    measure(f"{seed}/{kind}/pictures/pictures", logits, names, [name_of(shown[i]) for i in known])
                for by in ("z-norm", "centred", "raw") if source == "pictures" else ("raw",):
                    fed = moved(found["val"][kind], by, found["sounds"][kind], found["pictures"][kind])
                    measure(f"{seed}/{kind}/{source}/{by}", scores(bridge, fed, list(sentence.values())), labels, truth)
    print(table(results))


if __name__ == "__main__":
    main()
