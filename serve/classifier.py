"""Classify images with a published artifact.

    classifier = Classifier.open("artifacts/store/digits")      # files checked, model loaded and self-tested
    [predictions] = classifier.predict([photo_bytes])
    print(predictions[0].label, predictions[0].probability)

Shapes: N images, K classes, H x W the model's input. Arrays carry them as a suffix.
Invariant: equal probabilities are ordered by class index, so two machines agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from edgeline.serve.artifact import golden
from edgeline.serve.artifact.cam_outputs import EMBEDDING, EVIDENCE, cam_output_shapes
from edgeline.serve.artifact.manifest import Variant
from edgeline.serve.artifact.reader import Artifact, open_artifact
from edgeline.serve.artifact.training_features import Features, read_features
from edgeline.serve.errors import ArtifactError, EdgelineError, GoldenError, InputError
from edgeline.serve.explain import METHOD, Region, region_of
from edgeline.serve.preprocess import Limits, preprocess
from edgeline.serve.runtime.backends import load, uses_onnxruntime
from edgeline.serve.runtime.graph_cache import CachedGraph
from edgeline.serve.runtime.session import reason_of


@dataclass(frozen=True, slots=True)
class Prediction:
    """A class and its probability."""

    label: str
    probability: float
    index: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """Class activation maps of the most likely classes of one image."""

    predictions: list[Prediction]
    evidence_Khw: np.ndarray
    """The map of each prediction, in their order: float32, in logits; its mean is the class's logit."""
    region: Region
    """Left, top, right, bottom of the part that the model sees, as fractions of the upright image's width and height."""
    method: str = METHOD
    """Class activation mapping."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """A model's outputs for N images, float32."""

    probabilities_NK: np.ndarray
    logits_NK: np.ndarray
    embedding_NC: np.ndarray | None = None
    """Only of artifacts that were exported with `export.explain`."""
    evidence_NKhw: np.ndarray | None = None
    """Class activation maps, if requested."""


class Classifier:
    """A loaded artifact. Safe to share between threads: sessions run concurrently, and nothing else changes."""

    def __init__(self, artifact: Artifact, variant: Variant, session: Any, limits: Limits) -> None:
        self.artifact = artifact
        self.manifest = artifact.manifest
        self.variant = variant
        self.limits = limits
        self.self_test: golden.SelfTest | None = None
        """Result of the golden samples; None if they were not run."""
        self._session = session
        self.explains = False
        """Whether its graph has class activation maps and an embedding."""
        self.features: Features | None = None
        """Distribution of the training images' embeddings, if the artifact has it."""

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        variant: str | None = None,
        threads: int | None = None,
        limits: Limits = Limits(),
        verify: bool = True,
        cache: Path | None = None,
    ) -> Self:
        """Check an artifact's files, load one variant and run its golden samples.

        Args:
            path: an artifact folder, or a name's folder in a store for its stable version.
            variant: by default the float32 reference.
            threads: for one image; by default as many as this process may use.
            limits: larger images are rejected.
            verify: run the golden samples. Turn off only to find out *why* they fail.
            cache: folder for the optimized graph, so that the next start is faster; see `serve.runtime.graph_cache`.

        Raises:
            ArtifactError: it is incomplete, does not load, violates the graph contract, or fails its golden samples.
        """
        artifact = open_artifact(Path(path))
        chosen = artifact.manifest.variant(variant)
        # Only a model that passes its golden samples is cached, and a cached one is tested again.
        sha256 = artifact.manifest.file(chosen.file).sha256
        cached = CachedGraph.locate(cache, sha256, chosen) if verify else None
        if cached is None:
            return cls(artifact, chosen, load(chosen, artifact.read, threads), limits)._checked(verify)
        if (session := cached.load(threads)) is not None:
            try:
                return cls(artifact, chosen, session, limits)._checked()
            except Exception as error:  # a runtime may raise anything; if the artifact is at fault, it is raised again below
                cached.discard(error)
        with cached.create(artifact.read(chosen.file), threads) as session:
            return cls(artifact, chosen, session, limits)._checked()

    def pixels(self, image: bytes) -> np.ndarray:
        """Preprocess one image file's bytes to uint8 (H, W, 3).

        Raises:
            ImageError: not an image, or over the limits.
        """
        return preprocess(image, self.manifest.preprocess, self.limits)

    def probabilities(self, pixels_NHW3: np.ndarray) -> np.ndarray:
        """Run the model.

        Args:
            pixels_NHW3: uint8, stacked results of `pixels`.

        Returns:
            float32, shape (N, K), each row sums to 1.

        Raises:
            ArtifactError: the model returned a number that is not finite.
        """
        return self.answer(pixels_NHW3)[0]

    def answer(self, pixels_NHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run the model for its probabilities and its logits, float32 (N, K) each.

        Raises:
            ArtifactError: as `probabilities`.
        """
        outputs = self.run(pixels_NHW3)
        return outputs.probabilities_NK, outputs.logits_NK

    def run(self, pixels_NHW3: np.ndarray, *, explain: bool = False) -> Outputs:
        """Run the model for all of its outputs.

        Args:
            pixels_NHW3: as for `probabilities`.
            explain: whether to return class activation maps.

        Raises:
            ArtifactError: the model returned a number that is not finite.
            InputError: `explain` for an artifact that has no class activation maps.
        """
        names, feeds = ["probabilities", "logits"], {"image": pixels_NHW3}
        if explain and not self.explains:
            raise self.unexplained()
        if explain:
            outputs = Outputs(*self._session.run([*names, EMBEDDING, EVIDENCE], feeds))
        elif self.explains:
            outputs = Outputs(*self._session.run([*names, EMBEDDING], feeds))
        else:
            outputs = Outputs(*self._session.run(names, feeds))
        if not np.isfinite(outputs.probabilities_NK).all():
            raise ArtifactError("the model returned a probability that is not finite", code="model_output_not_finite")
        if outputs.evidence_NKhw is not None and not np.isfinite(outputs.evidence_NKhw).all():
            raise ArtifactError("the model returned a class activation map that is not finite", code="model_output_not_finite")
        return outputs

    def explain(self, images: Sequence[bytes], top_k: int = 1) -> list[Explanation]:
        """Classify image files and return a class activation map for each predicted class.

        Args:
            images: as for `predict`.
            top_k: as for `predict`.

        Raises:
            ImageError, InputError: as `predict`; also if the artifact was exported without `export.explain`.
        """
        if not self.explains:
            raise self.unexplained()
        if top_k < 1:
            raise InputError(f"top_k must be at least 1, got {top_k}")
        explanations = []
        for image in images:
            outputs = self.run(self.pixels(image)[None], explain=True)
            assert outputs.evidence_NKhw is not None
            predictions = self.rank(outputs.probabilities_NK[0], top_k)
            evidence_Khw = outputs.evidence_NKhw[0, [each.index for each in predictions]]
            explanations.append(Explanation(predictions, evidence_Khw, region_of(image, self.manifest.preprocess)))
        return explanations

    def evidence(self, pixels_NHW3: np.ndarray) -> np.ndarray:
        """Class activation maps, float32 (N, K, h, w); the mean over the positions is the class's logit.

        Raises:
            InputError: the artifact has none.
        """
        evidence_NKhw = self.run(pixels_NHW3, explain=True).evidence_NKhw
        assert evidence_NKhw is not None
        return evidence_NKhw

    def unexplained(self) -> InputError:
        """The error for a request to explain a prediction, if the artifact has no class activation maps."""
        return InputError(
            f"{self.manifest.name} {self.manifest.version} ({self.variant.name}) has no explanations: it was exported without "
            "export.explain = true, or the variant's format does not support them",
            code="explain_not_available",
        )

    def predict(self, images: Sequence[bytes], top_k: int = 5) -> list[list[Prediction]]:
        """Classify image files.

        Args:
            images: the bytes of each file.
            top_k: how many classes to return for each, at most all of them.

        Returns:
            For each image its most likely classes, best first.

        Raises:
            ImageError: one of them is not a valid image; the message does not name it, so pass untrusted images one by one.
            InputError: top_k is less than 1.
        """
        if top_k < 1:
            raise InputError(f"top_k must be at least 1, got {top_k}")
        predictions: list[list[Prediction]] = []
        for start in range(0, len(images), self.variant.max_batch):
            batch = images[start : start + self.variant.max_batch]
            pixels_NHW3 = np.stack([self.pixels(image) for image in batch])
            predictions += (self.rank(row_K, top_k) for row_K in self.probabilities(pixels_NHW3))
        return predictions

    def rank(self, probabilities_K: np.ndarray, top_k: int) -> list[Prediction]:
        """The most likely classes of one row of probabilities, best first."""
        order = (-probabilities_K).argsort(kind="stable")[:top_k]
        labels = self.manifest.labels
        return [Prediction(labels[i], p, i) for i, p in zip(order.tolist(), probabilities_K[order].tolist(), strict=True)]

    def _checked(self, verify: bool = True) -> Self:
        self._check_contract()
        self.features = read_features(self.artifact)
        if verify:
            evidence = self.evidence if self.explains else None
            try:
                self.self_test = golden.run_self_test(self.artifact, self.answer, self.variant.name, evidence)
            except EdgelineError:
                raise
            except Exception as error:  # the exceptions of the runtimes have no common base class
                raise GoldenError(
                    f"{self.variant.file} cannot compute the golden samples on this machine: {reason_of(error)}"
                ) from error
        return self

    def _check_contract(self) -> None:
        """Compare the graph's own inputs and outputs with the manifest.

        Other runtimes have no common way to list them; there, only the golden samples are checked.
        """
        if not uses_onnxruntime(self.variant.format):
            return
        spec, classes = self.manifest.preprocess, len(self.manifest.labels)
        expected = {
            "image": ("tensor(uint8)", (spec.height, spec.width, 3)),
            "probabilities": ("tensor(float)", (classes,)),
            "logits": ("tensor(float)", (classes,)),
        }
        cam_shapes = cam_output_shapes(self.manifest)
        expected |= {name: ("tensor(float)", shape) for name, shape in cam_shapes.items()}
        values = [*self._session.get_inputs(), *self._session.get_outputs()]
        found = {value.name: (value.type, tuple(value.shape[1:])) for value in values}
        if found != expected or any(isinstance(value.shape[0], int) for value in values):
            raise ArtifactError(
                f"{self.variant.file} has the inputs and outputs {found}, the manifest specifies {expected}, each after a "
                "dynamic batch dimension; publish the artifact again",
                code="spec_mismatch",
            )
        self.explains = bool(cam_shapes)
        # Golden samples verify the order of their own classes only, and an artifact may have more classes than samples.
        exported = self._session.get_modelmeta().custom_metadata_map.get("edgeline.labels")
        if exported is not None and exported.split("\n") != list(self.manifest.labels):
            raise ArtifactError(
                f"{self.variant.file} was exported with other labels than those of the manifest, or in another order; publish "
                "the artifact again",
                code="spec_mismatch",
            )
