"""Which part of an image a class activation map covers.

    [explanation] = classifier.explain([photo_bytes], top_k=1)
    explanation.evidence_Khw[0]       # map of the most likely class; its mean is its logit
    explanation.region                # the part of the upright image that the map covers

The method is class activation mapping (Zhou et al. 2016, "Learning Deep Features for Discriminative Localization"), which is
exact for networks that end in average pooling and a linear layer: the map adds up to the logit. Artifacts have it if they were
exported with `export.explain`; see `serve.artifact.cam_outputs`.
"""

from PIL import Image

from edgeline.serve.image_files import open_image
from edgeline.serve.preprocess import SIDEWAYS, PreprocessSpec, crop_box, orientation_of

METHOD = "cam"

Region = tuple[float, float, float, float]
"""Left, top, right, bottom, as fractions of the upright image's width and height."""


def region_of(image: bytes | Image.Image, spec: PreprocessSpec) -> Region:
    """The part of an image that the model sees.

    Args:
        image: bytes of a file that can be decoded, or an upright image.
        spec: the model's preprocessing.
    """
    if isinstance(image, bytes):
        with open_image(image) as header:
            width, height = header.size[::-1] if orientation_of(header) in SIDEWAYS else header.size
    else:
        width, height = image.size
    left, top, right, bottom = crop_box(width, height, spec)
    return left / width, top / height, right / width, bottom / height
