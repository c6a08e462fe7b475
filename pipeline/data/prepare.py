"""Make a data set ready: find its files, open each of them, keep each picture once, and split.

    run, result = prepare(load_config(data="photos/"))
    prepared = read_prepared(result.folder)

The step's folder holds `samples.csv` (what is kept), `rejected.csv`, `duplicates.csv` and `conflicts.csv` (what is not,
and why) and `summary.json`. The user's files are read and never written to.

The run is found by the content of the files, not by their times: a second call costs the hashing and no more.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from edgeline.pipeline.config import PipelineConfig, PrepareConfig
from edgeline.pipeline.data.deduplication import Resolved, resolve
from edgeline.pipeline.data.discovery import Source, find_source
from edgeline.pipeline.data.labels import some
from edgeline.pipeline.data.report import summarize, write_rejected, write_resolved
from edgeline.pipeline.data.samples import Sample, Split, write_samples
from edgeline.pipeline.data.split import carve
from edgeline.pipeline.data.validation import Opened, hash_files, open_images
from edgeline.pipeline.runs.atomic_files import digest_of, write_json
from edgeline.pipeline.runs.code_digest import code_digest
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.runs.run import Run, StepResult, create_run
from edgeline.pipeline.runs.step import CODE_CACHE, build_or_reuse, step_key
from edgeline.serve.errors import DataError, ImageError
from edgeline.serve.preprocess import Limits


def prepare(config: PipelineConfig) -> tuple[Run, StepResult]:
    """Find, open, compare and split a configuration's images, or find that this was done already.

    Returns:
        The run that the configuration and the data's content make, and its `prepare` step.

    Raises:
        DataError: the data cannot be trained on; the message says what to change.
    """
    start = time.monotonic()
    source, limits, hashes, fingerprint = _look(config)
    run = create_run(config, fingerprint)

    def build(folder: Path) -> None:
        opened = open_images(source, hashes, limits, ContentCache(config.cache / "images.sqlite"))
        write_rejected(folder / "rejected.csv", (*opened.rejected, *opened.ignored))
        _check_opened(source, opened, config.prepare, folder / "rejected.csv")
        resolved = resolve(opened.images, on_leakage=config.prepare.on_leakage)
        samples = _samples(source, resolved, _split(source, resolved, config))
        write_samples(folder / "samples.csv", samples)
        write_resolved(folder, resolved, samples)
        summary = {"fingerprint": fingerprint, "seed": config.seed, **summarize(source, opened, resolved, samples)}
        write_json(folder / "summary.json", summary)

    result = build_or_reuse(run, "prepare", _key(config, source, fingerprint), build)
    return run, replace(result, seconds=time.monotonic() - start)


def find_run(config: PipelineConfig) -> tuple[Run, str]:
    """Hash a configuration's data and return the run that `prepare` would fill, with the key of its step.

    Raises:
        DataError: there is no such data.
    """
    source, _, _, fingerprint = _look(config)
    return create_run(config, fingerprint), _key(config, source, fingerprint)


def _look(config: PipelineConfig) -> tuple[Source, Limits, list[str | ImageError], str]:
    source = find_source(config.data, Path(config.artifacts))
    limits = Limits(max_bytes=config.prepare.max_bytes, max_pixels=config.prepare.max_pixels)
    hashes = hash_files([source.path(file) for file in source.files], limits)
    return source, limits, hashes, _fingerprint(source, hashes)


def _key(config: PipelineConfig, source: Source, fingerprint: str) -> str:
    inputs = {
        "fingerprint": fingerprint,
        "root": source.root,  # samples.csv holds absolute paths
        "layout": source.layout,
        "seed": config.seed,
        "settings": config.prepare.model_dump(mode="json"),
    }
    return step_key(inputs, code_digest("edgeline.pipeline.data.prepare", cache=config.cache / CODE_CACHE), ("pillow",))


def _fingerprint(source: Source, hashes: Sequence[str | ImageError]) -> str:
    """Digest of all that the data is. A file that cannot be hashed counts with its reason."""
    files = [
        [file.name, file.label, file.given, file.group, sha256 if isinstance(sha256, str) else f"!{sha256.code}"]
        for file, sha256 in zip(source.files, hashes, strict=True)
    ]
    rejected = [[file.name, f"!{file.code}"] for file in source.rejected]
    return digest_of([sorted(files, key=str), sorted(rejected), source.labels])


def _check_opened(source: Source, opened: Opened, config: PrepareConfig, table: Path) -> None:
    if len(opened.rejected) > config.max_rejected_share * opened.found:
        reasons = some((f"{file.name}: {file.message} [{file.code}]" for file in opened.rejected), 3)
        raise DataError(
            f"{len(opened.rejected):,} of {opened.found:,} files cannot be used, more than "
            f"prepare.max_rejected_share = {config.max_rejected_share:g}: {reasons}; mend or remove them (all are in {table})",
            code="too_many_rejected",
        )
    usable = Counter(image.file.label for image in opened.images if image.split in (None, "train"))
    if empty := [repr(label) for label in source.labels if not usable[label]]:
        where = "train holds" if source.given else f"{source.root} holds"
        raise DataError(f"{where} no usable image of {some(empty)}; add some, or remove the class", code="empty_class")
    present = {image.file.given for image in opened.images}
    if bare := sorted(source.given - present):
        raise DataError(f"no usable image in {' and '.join(bare)}; add some, or remove the split", code="empty_split")


def _split(source: Source, resolved: Resolved, config: PipelineConfig) -> dict[str, Split]:
    """The split of each kept picture, by its pixels."""
    shares = {"test": config.prepare.test_share, "val": config.prepare.val_share}
    roles = {source.role(given) for given in source.given}
    missing: dict[Split, float] = {split: shares[split] for split in ("test", "val") if split not in roles}
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for image in resolved.kept:
        if image.split in (None, "train"):
            groups[resolved.group(image)][image.file.label] += 1
    _check_counts(source.labels, resolved, groups, len(missing) + 1, config.prepare.min_per_class)
    carved = carve(groups, missing, seed=config.seed)
    _check_carved(source.labels, groups, carved, ("train", *missing))
    return {
        image.picture.pixels: image.split if image.split in ("val", "test") else carved[resolved.group(image)]
        for image in resolved.kept
    }


def _check_counts(
    labels: Sequence[str], resolved: Resolved, groups: Mapping[str, Counter[str]], splits: int, min_per_class: int
) -> None:
    """Each class must have images enough, and in train as many groups as splits are made of it."""
    images = Counter(image.file.label for image in resolved.kept)
    apart = Counter(label for counts in groups.values() for label in counts)
    few = [f"{label!r} has {images[label]}" for label in labels if images[label] < min_per_class]
    few += [
        f"{label!r} has {apart[label]} in train that may be split from each other, needed are {splits}"
        for label in labels
        if images[label] >= min_per_class and apart[label] < splits
    ]
    if few:
        raise DataError(
            f"too few different images, at least {min_per_class} a class are needed: {some(few)}; "
            "add some, or remove the class",
            code="too_few_images",
        )


def _check_carved(
    labels: Sequence[str], groups: Mapping[str, Counter[str]], carved: Mapping[str, Split], splits: Sequence[Split]
) -> None:
    there = {(label, carved[name]) for name, counts in groups.items() for label in counts}
    if absent := [f"{label!r} in {split}" for label in labels for split in splits if (label, split) not in there]:
        raise DataError(
            f"the groups, each of which stays whole, leave no image of {some(absent)}; make the groups smaller",
            code="too_few_images",
        )


def _public_name(name: str) -> str:
    """The relative name of a file; of one that a table names by an outside path, the file's name alone."""
    path = PurePosixPath(name)
    return path.name if path.is_absolute() or ".." in path.parts else name


def _samples(source: Source, resolved: Resolved, splits: Mapping[str, Split]) -> list[Sample]:
    index = {label: index for index, label in enumerate(source.labels)}
    return [
        Sample(
            path=source.path(image.file),
            name=_public_name(image.file.name),
            label=image.file.label,
            index=index[image.file.label],
            split=splits[image.picture.pixels],
            group=resolved.group(image),
            sha256=image.sha256,
            pixels=image.picture.pixels,
            width=image.picture.width,
            height=image.picture.height,
        )
        for image in resolved.kept
    ]
