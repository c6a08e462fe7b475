"""Answer with a published artifact.

    classifier = Classifier.open("artifacts/store/digits")      # checked, loaded and proven
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
from edgeline.serve.artifact.manifest import Variant
from edgeline.serve.artifact.reader import Artifact, open_artifact
from edgeline.serve.errors import ArtifactError, InputError
from edgeline.serve.explain import EMBEDDING, EVIDENCE, METHOD, Features, Region, more_outputs, read_features, region_of
from edgeline.serve.preprocess import Limits, preprocess
from edgeline.serve.runtime.backends import load
from edgeline.serve.runtime.graph_cache import Optimized


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class and how likely it is."""

    label: str
    probability: float
    index: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why the likeliest classes of one image are so."""

    predictions: list[Prediction]
    evidence_Khw: np.ndarray
    """Of each prediction, in their order: float32, what each place adds to the class; its mean is the class's logit."""
    region: Region
    """Left, top, right, bottom of what the model saw, as shares of the upright picture's width and height."""
    method: str = METHOD
    """Class activation mapping."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a model gives for N images, float32."""

    probabilities_NK: np.ndarray
    logits_NK: np.ndarray
    embedding_NC: np.ndarray | None = None
    """Of an artifact that explains itself."""
    evidence_NKhw: np.ndarray | None = None
    """Of one that was asked to."""


class Classifier:
    """A loaded artifact. Safe to share between threads: sessions run concurrently, nothing else changes."""

    def __init__(self, artifact: Artifact, variant: Variant, session: Any, limits: Limits) -> None:
        self.artifact = artifact
        self.manifest = artifact.manifest
        self.variant = variant
        self.limits = limits
        self.proof: golden.Proof | None = None
        self._session = session
        self.explains = False
        """Whether its graph gives evidence and embedding too."""
        self.features: Features | None = None
        """What its training images' embeddings are like, where the artifact says so."""

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        variant: str | None = None,
        threads: int | None = None,
        limits: Limits = Limits(),
        prove: bool = True,
        cache: Path | None = None,
    ) -> Self:
        """Check an artifact's files, load one variant, and have it answer its golden samples.

        Args:
            path: an artifact folder, or a name's folder in a store for its newest version.
            variant: by default the float32 reference.
            threads: for one image; by default as many as this process may use.
            limits: what images are refused.
            prove: run the golden samples. Turn off only to find out *why* they fail.
            cache: a folder to keep the optimized graph in, so that it opens
                faster the next time; see `serve.runtime.graph_cache`.

        Raises:
            ArtifactError: it is not whole, does not load, breaks its contract, or fails its golden samples.
        """
        artifact = open_artifact(Path(path))
        chosen = artifact.manifest.variant(variant)
        # What does not prove itself is not kept, and what is kept proves itself again.
        kept = Optimized.of(cache, artifact.manifest.file(chosen.file).sha256, chosen) if prove else None
        if kept is None:
            session = load(chosen, artifact.read, threads, saturates=chosen.saturates)
            return cls(artifact, chosen, session, limits)._checked(prove)
        if (session := kept.load(threads)) is not None:
            try:
                return cls(artifact, chosen, session, limits)._checked()
            except Exception as error:  # a runtime raises what it likes; what is the artifact's own fault comes again
                kept.discard(error)
        with kept.making(artifact.read(chosen.file), threads) as session:
            return cls(artifact, chosen, session, limits)._checked()

    def pixels(self, image: bytes) -> np.ndarray:
        """Preprocess one image file's bytes to uint8 (H, W, 3).

        Raises:
            ImageError: it is none, or over the limits.
        """
        return preprocess(image, self.manifest.preprocess, self.limits)

    def probabilities(self, pixels_NHW3: np.ndarray) -> np.ndarray:
        """Run the model.

        Args:
            pixels_NHW3: uint8, as `pixels` gives them, stacked.

        Returns:
            float32, shape (N, K), each row sums to 1.

        Raises:
            ArtifactError: the model gave a number that is not finite.
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
        """Run the model for all that it gives.

        Args:
            pixels_NHW3: as `probabilities` takes them.
            explain: whether the evidence is wanted.

        Raises:
            ArtifactError: the model gave a number that is not finite.
            InputError: it is to explain itself, and was not made to.
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
            raise ArtifactError("the model gave a probability that is not finite", code="model_output_not_finite")
        if outputs.evidence_NKhw is not None and not np.isfinite(outputs.evidence_NKhw).all():
            raise ArtifactError("the model gave evidence that is not finite", code="model_output_not_finite")
        return outputs

    def explain(self, images: Sequence[bytes], top_k: int = 1) -> list[Explanation]:
        """Classify image files, and say of each class where in the picture it was seen.

        Args:
            images: as `predict` takes them.
            top_k: likewise.

        Raises:
            ImageError, InputError: as `predict`; also where the artifact was exported without `export.explain`.
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
        """What each place adds to each class's logit: float32 (N, K, h, w), whose mean over the places is the logit.

        Raises:
            InputError: the artifact does not explain itself.
        """
        evidence_NKhw = self.run(pixels_NHW3, explain=True).evidence_NKhw
        assert evidence_NKhw is not None
        return evidence_NKhw

    def unexplained(self) -> InputError:
        """The error for whoever asks why, of an artifact that cannot say."""
        return InputError(
            f"{self.manifest.name} {self.manifest.version} ({self.variant.name}) cannot say why: it was made without "
            "export.explain = true, or this variant's runtime has no place for it",
            code="explain_not_available",
        )

    def predict(self, images: Sequence[bytes], top_k: int = 5) -> list[list[Prediction]]:
        """Classify image files.

        Args:
            images: the bytes of each file.
            top_k: how many classes to return for each, at most all of them.

        Returns:
            For each image its likeliest classes, best first.

        Raises:
            ImageError: one of them is no good image; the message does not say which, so pass untrusted ones singly.
            InputError: top_k is under 1.
        """
        if top_k < 1:
            raise InputError(f"top_k must be at least 1, got {top_k}")
        answers: list[list[Prediction]] = []
        for start in range(0, len(images), self.variant.max_batch):
            batch = images[start : start + self.variant.max_batch]
            pixels_NHW3 = np.stack([self.pixels(image) for image in batch])
            answers += (self.rank(row_K, top_k) for row_K in self.probabilities(pixels_NHW3))
        return answers

    def rank(self, probabilities_K: np.ndarray, top_k: int) -> list[Prediction]:
        """The likeliest classes of one row of probabilities, best first."""
        order = (-probabilities_K).argsort(kind="stable")[:top_k]
        labels = self.manifest.labels
        return [Prediction(labels[i], p, i) for i, p in zip(order.tolist(), probabilities_K[order].tolist(), strict=True)]

    def _checked(self, prove: bool = True) -> Self:
        self._check_contract()
        self.features = read_features(self.artifact)
        if prove:
            evidence = self.evidence if self.explains else None
            self.proof = golden.prove(self.artifact, self.answer, self.variant.name, evidence)
        return self

    def _check_contract(self) -> None:
        """Compare the graph's own inputs and outputs with the manifest.

        The files of other runtimes do not tell theirs in one way; their golden samples show what they take and give.
        """
        if self.variant.format not in ("onnx", "ort"):
            return
        spec, classes = self.manifest.preprocess, len(self.manifest.labels)
        expected = {
            "image": ("tensor(uint8)", (spec.height, spec.width, 3)),
            "probabilities": ("tensor(float)", (classes,)),
            "logits": ("tensor(float)", (classes,)),
        }
        more = more_outputs(self.manifest)
        expected |= {name: ("tensor(float)", shape) for name, shape in more.items()}
        values = [*self._session.get_inputs(), *self._session.get_outputs()]
        found = {value.name: (value.type, tuple(value.shape[1:])) for value in values}
        if found != expected or any(isinstance(value.shape[0], int) for value in values):
            raise ArtifactError(
                f"{self.variant.file} has the inputs and outputs {found}, its manifest promises {expected}, each behind a "
                "free batch dimension; publish the artifact again",
                code="spec_mismatch",
            )
        self.explains = bool(more)
        # Golden samples show the order of the classes they are of, and an artifact may have more classes than samples.
        exported = self._session.get_modelmeta().custom_metadata_map.get("edgeline.labels")
        if exported is not None and exported.split("\n") != list(self.manifest.labels):
            raise ArtifactError(
                f"{self.variant.file} was exported for other labels, or for another order of them, than the manifest names; "
                "publish the artifact again",
                code="spec_mismatch",
            )
