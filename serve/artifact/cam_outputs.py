"""The outputs that a graph has in addition if it was exported with `export.explain`, and their shapes.

Shapes: N images, K classes, h x w positions, C features.
"""

from edgeline.serve.artifact.manifest import Manifest
from edgeline.serve.errors import ArtifactError

EVIDENCE = "evidence"
"""float32 (N, K, h, w), in logits: a class activation map of every class; its mean over the positions is the class's logit."""
EMBEDDING = "embedding"
"""float32 (N, C): the averaged features that the linear classifier reads."""


def cam_output_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """The shapes of `evidence`, (K, h, w), and `embedding`, (C,), in a manifest, without the batch; {} if it has neither.

    Raises:
        ArtifactError: a shape is invalid, or it has one output without the other.
    """
    found = {each["name"]: each["shape"] for each in manifest.outputs if each["name"] in (EVIDENCE, EMBEDDING)}
    if not found:
        return {}
    shapes = {name: tuple(shape[1:]) if isinstance(shape, list) else () for name, shape in found.items()}
    places, features = shapes.get(EVIDENCE, ()), shapes.get(EMBEDDING, ())
    positive = all(type(size) is int and size > 0 for size in (*places, *features))
    if not positive or len(places) != 3 or places[0] != len(manifest.labels) or len(features) != 1:
        raise ArtifactError(
            f"the manifest's outputs {EVIDENCE} and {EMBEDDING} have the shapes {str(found)[:200]}, expected "
            f"[batch, {len(manifest.labels)}, h, w] and [batch, features]; publish the artifact again",
            code="spec_mismatch",
        )
    return shapes
