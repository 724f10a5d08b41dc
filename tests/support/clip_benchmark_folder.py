"""Folders of webdataset shards as CLIP_benchmark's export writes them."""

from support.small_shards import write_tar

PER_SHARD = 2


def write_folder(folder, samples, *, classes=(), templates=(), dataset_type=""):
    """Samples are dictionaries of content by file ending: {"jpg": ..., "cls": b"0"}."""
    shards = {}
    for number, sample in enumerate(samples):
        members = shards.setdefault(number // PER_SHARD, {})
        for ending, content in sample.items():
            members[f"s{number:07d}.{ending}"] = content
    for index, members in shards.items():
        write_tar(folder / "test" / f"{index}.tar", members)

    (folder / "test" / "nshards.txt").write_text(f"{len(shards)}\n")
    (folder / "classnames.txt").write_text("\n".join(classes))
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates))
    (folder / "dataset_type.txt").write_text(dataset_type)
    return folder
