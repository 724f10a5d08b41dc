"""Folders of webdataset shards as CLIP_benchmark's export writes them."""

from support.small_shards import write_tar


def write_folder(folder, samples, *, split="test", per_shard=2, classes=(), templates=(), kind=""):
    """Samples are dictionaries of content by file ending: {"webp": ..., "cls": b"0"}."""
    shards = [samples[i : i + per_shard] for i in range(0, len(samples), per_shard)]
    number = iter(range(len(samples)))
    for i, shard in enumerate(shards):
        members = {}
        for sample in shard:
            key = f"s{next(number):07d}"
            members |= {f"{key}.{ending}": content for ending, content in sample.items()}
        write_tar(folder / split / f"{i}.tar", members)
    (folder / split / "nshards.txt").write_text(f"{len(shards)}\n")
    for name, lines in {"classnames": classes, "zeroshot_classification_templates": templates}.items():
        if lines:
            (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    if kind:
        (folder / "dataset_type.txt").write_text(f"{kind}\n")
    return folder
