"""Prepare a data set: find, validate, deduplicate and split its images.

    run, result = prepare(load_config(data="photos/"))
    prepared = read_prepared(result.folder)

The step's folder contains `samples.csv` (the images that are kept), `rejected.csv`, `duplicates.csv` and `conflicts.csv`
(the others, with the reason), `summary.json` and `findings.json`; for a CSV file with further columns also `attributes.csv`.
The user's files are never written to.

The run is identified by the content of the files, not by their times: a second call only hashes them.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from edgeline.pipeline.config import PipelineConfig, PrepareConfig
from edgeline.pipeline.data.deduplication import Deduplicated, deduplicate
from edgeline.pipeline.data.image_record import FILE_NAME, read_record
from edgeline.pipeline.data.near_groups import extend_history, find_near_pairs, group_near_pairs, read_history, write_pictures
from edgeline.pipeline.data.report import (
    build_summary,
    find_in_data,
    write_conflicts,
    write_duplicates,
    write_near_duplicates,
    write_rejected,
)
from edgeline.pipeline.data.samples import ATTRIBUTES, Sample, write_attributes, write_samples
from edgeline.pipeline.data.split import HELD_OUT, carve
from edgeline.pipeline.data.validation import ValidationResult, hash_files, validate_images
from edgeline.pipeline.names import Split
from edgeline.pipeline.runs.atomic_files import digest_of, file_digest, write_json
from edgeline.pipeline.runs.code_digest import code_digest
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.runs.findings import write_findings
from edgeline.pipeline.runs.run import Run, StepResult, create_run
from edgeline.pipeline.runs.step import CODE_CACHE, build_or_reuse, step_key
from edgeline.pipeline.sources.discovery import Source, find_source
from edgeline.pipeline.sources.labels import summarize
from edgeline.serve.errors import DataError, ImageError
from edgeline.serve.preprocess import Limits

KEPT_FIRST: tuple[Split, ...] = ("test", "train", "val")
"""Which split a group keeps if its images had several."""


def prepare(config: PipelineConfig) -> tuple[Run, StepResult]:
    """Find, validate, deduplicate and split the images of a configuration, or reuse the result.

    Returns:
        The run of this configuration and data, and its `prepare` step.

    Raises:
        DataError: the data cannot be trained on. The message names what to change.
        EdgelineError: the engine cannot be used, see `pipeline.engines.map_shards`.
    """
    start = time.monotonic()
    source, limits, hashes, fingerprint = _hash_data(config)
    run = create_run(config, fingerprint)

    history = ContentCache(config.cache / "first_seen.sqlite")
    kept, kept_digest = _kept_splits(config)

    def build(folder: Path) -> None:
        validated = validate_images(source, hashes, limits, ContentCache(config.cache / "images.sqlite"), config.engine)
        write_rejected(folder / "rejected.csv", (*validated.rejected, *validated.ignored))
        _check_validated(source, validated, config.prepare, folder / "rejected.csv")
        deduplicated = deduplicate(validated.images, on_leakage=config.prepare.on_leakage)
        write_conflicts(folder / "conflicts.csv", deduplicated)
        _check_conflicts(source.labels, deduplicated, config.prepare, folder / "conflicts.csv")
        if config.prepare.near_duplicates == "group":
            pairs = find_near_pairs(deduplicated.kept)
            deduplicated = group_near_pairs(deduplicated, pairs, read_history(history, deduplicated))
        samples = _samples(source, deduplicated, _split(source, deduplicated, config, kept))
        write_samples(folder / "samples.csv", samples)
        write_attributes(folder / ATTRIBUTES, {image.content.pixels: image.file.attributes for image in deduplicated.kept})
        write_duplicates(folder / "duplicates.csv", deduplicated, samples)
        write_near_duplicates(folder / "near_duplicates.csv", deduplicated, samples)
        write_pictures(folder / "near_duplicates.html", deduplicated.near, samples)
        extend_history(history, deduplicated)
        write_findings(folder, find_in_data(source, validated, deduplicated, samples))
        summary = {"fingerprint": fingerprint, "seed": _seed(config), **build_summary(source, validated, deduplicated, samples)}
        write_json(folder / "summary.json", summary)

    result = build_or_reuse(run, "prepare", _key(config, source, fingerprint, kept_digest), build)
    return run, replace(result, seconds=time.monotonic() - start)


def find_run(config: PipelineConfig) -> tuple[Run, str]:
    """Hash a configuration's data and return the run and the step key that `prepare` would use.

    Raises:
        DataError: the data does not exist, or has no known layout.
    """
    source, _, _, fingerprint = _hash_data(config)
    return create_run(config, fingerprint), _key(config, source, fingerprint, _kept_splits(config)[1])


def _hash_data(config: PipelineConfig) -> tuple[Source, Limits, list[str | ImageError], str]:
    source = find_source(config.data, Path(config.artifacts), config.prepare)
    limits = Limits(max_bytes=config.prepare.max_bytes, max_pixels=config.prepare.max_pixels)
    hashes = hash_files([source.path(file) for file in source.files], limits, config.engine)
    return source, limits, hashes, _fingerprint(source, hashes)


def _kept_splits(config: PipelineConfig) -> tuple[Mapping[str, Split], str]:
    """The splits that images keep, by pixel digest, and a digest of them.

    Raises:
        DataError: the version that they are kept from does not record its images.
    """
    version = config.prepare.keep_splits
    if version is None:
        return {}, ""
    path = config.store / config.artifact_name / str(version) / FILE_NAME
    known = {pixels: known.kept for pixels, known in read_record(path).items()}
    return {pixels: split for pixels, split in known.items() if split is not None}, file_digest(path)


def _key(config: PipelineConfig, source: Source, fingerprint: str, kept: str) -> str:
    inputs = {
        "fingerprint": fingerprint,
        "root": source.root,  # samples.csv contains absolute paths
        "layout": source.layout,
        "seed": _seed(config),
        "settings": config.prepare.model_dump(mode="json"),
        "kept": kept,
    }
    return step_key(inputs, code_digest("edgeline.pipeline.data.prepare", cache=config.cache / CODE_CACHE), ("pillow",))


def _seed(config: PipelineConfig) -> int:
    """The seed of the split."""
    return config.seed if config.prepare.seed is None else config.prepare.seed


def _fingerprint(source: Source, hashes: Sequence[str | ImageError]) -> str:
    """Digest of the whole data set. A file that cannot be hashed is represented by the reason."""
    files = [
        [
            *(file.name, file.label, file.given, file.group, sha256 if isinstance(sha256, str) else f"!{sha256.code}"),
            *([file.attributes] if file.attributes else []),
        ]
        for file, sha256 in zip(source.files, hashes, strict=True)
    ]
    rejected = [[file.name, f"!{file.code}"] for file in source.rejected]
    return digest_of([sorted(files, key=str), sorted(rejected), source.labels])


def _check_validated(source: Source, validated: ValidationResult, config: PrepareConfig, table: Path) -> None:
    if len(validated.rejected) > config.max_rejected_share * validated.found:
        reasons = summarize((f"{file.name}: {file.message} [{file.code}]" for file in validated.rejected), 3)
        raise DataError(
            f"{len(validated.rejected):,} of {validated.found:,} files cannot be used, more than "
            f"prepare.max_rejected_share = {config.max_rejected_share:g}: {reasons}; fix or remove them (listed in {table})",
            code="too_many_rejected",
        )
    usable = Counter(image.file.label for image in validated.images if image.split in (None, "train"))
    if empty := [repr(label) for label in source.labels if not usable[label]]:
        where = "train contains" if source.given else f"{source.root} contains"
        raise DataError(f"{where} no usable image of {summarize(empty)}; add images, or remove the class", code="empty_class")
    present = {image.file.given for image in validated.images}
    if unusable := sorted(source.given - present):
        raise DataError(f"no usable image in {' and '.join(unusable)}; add images, or remove the split", code="empty_split")


def _check_conflicts(labels: Sequence[str], deduplicated: Deduplicated, config: PrepareConfig, table: Path) -> None:
    """A class that has too few images because the others have a second label is reported as such."""
    kept = Counter(image.file.label for image in deduplicated.kept)
    others: dict[str, Counter[str]] = defaultdict(Counter)
    for image, other in deduplicated.conflicts:
        others[image.file.label][other.file.label] += 1
    if lost := [label for label in labels if others[label] and kept[label] < config.min_per_class]:
        listed = summarize(
            f"{label!r} keeps {kept[label]} images, because {count:,} are also in {other!r}"
            for label in lost
            for other, count in others[label].most_common(1)
        )
        raise DataError(
            f"the same images have two labels and are left out: {listed}; decide on one label for each (listed in {table})",
            code="label_conflict",
        )


def _split(source: Source, deduplicated: Deduplicated, config: PipelineConfig, known: Mapping[str, Split]) -> dict[str, Split]:
    """Return the split of each image, by its pixel digest.

    Args:
        source: where the images are from.
        deduplicated: the images.
        config: the shares and the seed.
        known: the splits that images had in an earlier version. A group with a test image stays in test.
    """
    shares = {"test": config.prepare.test_share, "val": config.prepare.val_share}
    roles = {source.role(given) for given in source.given}
    missing: dict[Split, float] = {split: shares[split] for split in ("test", "val") if split not in roles}
    _check_given(source.given, config.prepare.min_per_class)
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    had: dict[str, set[Split]] = defaultdict(set)
    for image in deduplicated.kept:
        if image.split in (None, "train") and image.content.pixels not in deduplicated.near_copies:
            groups[deduplicated.group(image)][image.file.label] += 1
        if (split := known.get(image.content.pixels)) is not None:
            had[deduplicated.group(image)].add(split)
    kept = {name: next(split for split in KEPT_FIRST if split in had[name]) for name in groups if name in had}
    _check_counts(source.labels, deduplicated, groups, len(missing) + 1, config.prepare.min_per_class)
    carved = carve(groups, missing, seed=_seed(config), kept=kept)
    _check_carved(source.labels, groups, carved, ("train", *missing))
    return {
        image.content.pixels: "test"
        if known.get(image.content.pixels) == "test"
        else image.split
        if image.split in ("val", "test")
        else carved[deduplicated.group(image)]
        for image in deduplicated.kept
    }


def _check_given(given: frozenset[Split], min_per_class: int) -> None:
    """A class with fewer images than there are splits needs data that defines them."""
    absent = [f"{split}/" for split in HELD_OUT if split not in given]
    if absent and min_per_class <= len(HELD_OUT):
        raise DataError(
            f"prepare.min_per_class is {min_per_class}, which needs data with its own val/ and test/ folders (or a CSV file "
            f"with a column split): this has no {' and no '.join(absent)}; add {'them' if len(absent) > 1 else 'it'}, or set "
            f"prepare.min_per_class={len(HELD_OUT) + 1}",
            code="too_few_images",
        )


def _check_counts(
    labels: Sequence[str], deduplicated: Deduplicated, groups: Mapping[str, Counter[str]], splits: int, min_per_class: int
) -> None:
    """Each class must have enough images, and at least as many groups as splits are carved from train."""
    images = Counter(image.file.label for image in deduplicated.kept)
    group_counts = Counter(label for counts in groups.values() for label in counts)
    few = [f"{label!r} has {images[label]}" for label in labels if images[label] < min_per_class]
    few += [
        f"{label!r} has {group_counts[label]} in train that can be in different splits, and {splits} are needed"
        for label in labels
        if images[label] >= min_per_class and group_counts[label] < splits
    ]
    if few:
        hint = "; near-duplicates count as one unless prepare.near_duplicates is ignore" if deduplicated.near else ""
        if splits == 1 and min_per_class > 1:
            hint += "; or set prepare.min_per_class=1, because the data has its own val and test splits"
        raise DataError(
            f"too few distinct images, at least {min_per_class} are needed in each class: {summarize(few)}; "
            f"add images, or remove the class{hint}",
            code="too_few_images",
        )


def _check_carved(
    labels: Sequence[str], groups: Mapping[str, Counter[str]], carved: Mapping[str, Split], splits: Sequence[Split]
) -> None:
    there = {(label, carved[name]) for name, counts in groups.items() for label in counts}
    if absent := [f"{label!r} in {split}" for label in labels for split in splits if (label, split) not in there]:
        raise DataError(
            f"groups cannot be divided, and these leave no image of {summarize(absent)}; make the groups smaller",
            code="too_few_images",
        )


def _public_name(name: str) -> str:
    """Return the relative name of a file, or only its file name if it is outside the data's root."""
    path = PurePosixPath(name)
    return path.name if path.is_absolute() or ".." in path.parts else name


def _samples(source: Source, deduplicated: Deduplicated, splits: Mapping[str, Split]) -> list[Sample]:
    index = {label: index for index, label in enumerate(source.labels)}
    return [
        Sample(
            path=source.path(image.file),
            name=_public_name(image.file.name),
            label=image.file.label,
            index=index[image.file.label],
            split=splits[image.content.pixels],
            group=deduplicated.group(image),
            sha256=image.sha256,
            pixels=image.content.pixels,
            width=image.content.width,
            height=image.content.height,
        )
        for image in deduplicated.kept
    ]
