"""Keep near-duplicates in one split: merge their groups, and report the pairs with their pictures.

A merged group has the name of its member that an earlier run has seen first, so a near-copy that is added later joins the split
of the photo that is there already. Without an earlier run, it is the member with the most pixels.
"""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgeline.pipeline.data.connected import connected
from edgeline.pipeline.data.deduplication import Deduplicated, NearPair
from edgeline.pipeline.data.near_duplicates import find_near_duplicates
from edgeline.pipeline.data.samples import ADMITTED, Sample
from edgeline.pipeline.data.validation import ValidImage
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.serve.preprocess import decode_image

MAX_PICTURED = 50
"""Pairs in the page of pictures."""
PICTURE_SIDE = 200
STYLE = "body{font:16px system-ui;max-width:60rem;margin:2rem auto}figure{display:inline-block;margin:.5rem;max-width:14rem}"


def find_near_pairs(images: Sequence[ValidImage]) -> tuple[NearPair, ...]:
    """Find the near-duplicates among images without exact copies."""
    found = find_near_duplicates([image.content.thumbnail for image in images])
    return tuple(NearPair(first=images[i], second=images[j], similarity=similarity) for i, j, similarity in found.pairs)


def group_near_pairs(deduplicated: Deduplicated, pairs: Sequence[NearPair], history: Mapping[str, int]) -> Deduplicated:
    """Merge the groups of near-duplicates, except for images that the data itself puts into a held-out split.

    Args:
        deduplicated: the images, with the group of each.
        pairs: the near-duplicates.
        history: number of the run that first saw an image, by pixel digest; images without an entry are new.
    """
    movable = [pair for pair in pairs if {pair.first.split, pair.second.split} <= {None, "train"}]
    find = connected((deduplicated.group(pair.first), deduplicated.group(pair.second)) for pair in movable)
    find_picture = connected((pair.first.content.pixels, pair.second.content.pixels) for pair in movable)

    def rank(image: ValidImage) -> tuple[float, int, str]:
        content = image.content
        return history.get(content.pixels, float("inf")), -content.width * content.height, content.pixels

    names: dict[str, str] = {}
    counted: set[tuple[str, str]] = set()
    copies: set[str] = set()
    for image in sorted(deduplicated.kept, key=rank):
        names.setdefault(find(deduplicated.group(image)), deduplicated.group(image))
        picture = find_picture(image.content.pixels), image.file.label
        if picture in counted:
            copies.add(image.content.pixels)
        counted.add(picture)
    groups = {pixels: names.get(find(group), group) for pixels, group in deduplicated.groups.items()}
    return replace(deduplicated, near=tuple(pairs), near_copies=frozenset(copies), groups=groups)


def read_history(cache: ContentCache, deduplicated: Deduplicated) -> dict[str, int]:
    """Read in which run each kept image was first seen, counted from 1, by pixel digest."""
    return {key: int(value) for key, value in cache.get(image.content.pixels for image in deduplicated.kept)}


def extend_history(cache: ContentCache, deduplicated: Deduplicated) -> None:
    """Store which kept images this run has seen for the first time."""
    history = read_history(cache, deduplicated)
    number = str(max(history.values(), default=0) + 1).encode()
    cache.put([(image.content.pixels, number) for image in deduplicated.kept if image.content.pixels not in history])


def write_pictures(path: Path, pairs: Sequence[NearPair], samples: Iterable[Sample]) -> None:
    """Write a page with the pictures of the first pairs. It is not published with the artifact."""
    files = {sample.pixels: sample.path for sample in samples}
    figures = [
        f"<p>{_figure(pair.first, files)}{_figure(pair.second, files)} {pair.similarity:.3f}</p>"
        for pair in pairs[:MAX_PICTURED]
    ]
    more = f"<p>and {len(pairs) - MAX_PICTURED:,} more pairs in near_duplicates.csv</p>" if len(pairs) > MAX_PICTURED else ""
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Near-duplicates</title><style>{STYLE}</style>'
    path.write_text(f"{head}<h1>Near-duplicates</h1>{''.join(figures)}{more}</html>\n", encoding="utf-8")


def _figure(image: ValidImage, files: Mapping[str, str]) -> str:
    picture = decode_image(Path(files[image.content.pixels]).read_bytes(), limits=ADMITTED)
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    source = base64.b64encode(buffer.getvalue()).decode()
    caption = html.escape(f"{image.name} ({image.content.width} x {image.content.height})")
    return f'<figure><img src="data:image/jpeg;base64,{source}" alt=""><figcaption>{caption}</figcaption></figure>'
