"""Tell what a Core ML package holds, as JSON, and write its layers' weights; see `export.coreml_structure`.

Runs where coremltools is installed, on any system: it parses the package and computes nothing.
"""

import json
import sys
from typing import Any

import coremltools
import numpy as np
from coremltools.converters.mil.frontend.milproto.load import load
from coremltools.proto import FeatureTypes_pb2

LAYERS = ("conv", "linear")


def facts_of(spec: Any, operations: list[Any]) -> dict[str, Any]:
    """What a package takes and gives, and of which operators it is made."""
    [picture] = [value.type.imageType for value in spec.description.input]
    arrays = {value.name: value.type.multiArrayType for value in spec.description.output}
    colors = FeatureTypes_pb2.ImageFeatureType.ColorSpace
    types = FeatureTypes_pb2.ArrayFeatureType.ArrayDataType
    names = [operation.op_type for operation in operations]
    return {
        "kind": spec.WhichOneof("Type"),
        "input": [spec.description.input[0].name, picture.height, picture.width, colors.Name(picture.colorSpace)],
        "outputs": {name: [list(array.shape), types.Name(array.dataType)] for name, array in arrays.items()},
        "specification": spec.specificationVersion,
        "operators": {name: names.count(name) for name in sorted(set(names) - {"const"})},
    }


if __name__ == "__main__":
    package, weights = sys.argv[1:]
    model = coremltools.models.MLModel(package, skip_model_load=True)
    program = load(model.get_spec(), model.get_spec().specificationVersion, file_weights_dir=model.weights_dir)
    [function] = program.functions.values()
    operations = list(function.operations)
    values = [operation.outputs[0].val for operation in operations if operation.op_type == "const"]
    numbers = [np.asarray(value) for value in values if np.asarray(value).dtype.kind == "f"]
    layers = [operation for operation in operations if operation.op_type in LAYERS]
    arrays = [layer.inputs[name].val for layer in layers for name in ("weight", "bias") if name in layer.inputs]
    np.savez(weights, *[np.asarray(array) for array in arrays])
    finite = all(np.isfinite(array).all() for array in numbers)
    print(json.dumps(facts_of(model.get_spec(), operations) | {"finite": finite}))
