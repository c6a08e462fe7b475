"""What a layer-wise comparison reports. Free of torch, so that reading a report does not import it."""

from edgeline.export.records import Record


class Layer(Record):
    """A layer's output in the file, compared with PyTorch's."""

    module: str
    """Path in the PyTorch network."""
    node: str
    """Name in the ONNX graph."""
    sqnr_db: float


class Divergence(Record):
    """Every layer's figures, in the graph's order, and the first that is out of tolerance."""

    first: Layer | None
    layers: tuple[Layer, ...]

    @property
    def problems(self) -> list[str]:
        """A sentence that names the first diverging layer; empty where there is none."""
        if self.first is None:
            return []
        return [
            f"the first of {len(self.layers)} layers to diverge is {self.first.module} (ONNX node {self.first.node}, SQNR "
            f"{self.first.sqnr_db:.0f} dB): look at it and at what comes before it"
        ]
