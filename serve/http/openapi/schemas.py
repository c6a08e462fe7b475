"""JSON Schemas of the server's requests and responses, and every error code by its status.

Schemas of replies are closed: a member that is added to a reply but not here fails the test that validates real replies.
"""

from typing import Any

from edgeline.serve.errors import ArtifactError, DigestError, GoldenError, ManifestError, MissingExtraError, StoreError
from edgeline.serve.explain import METHOD
from edgeline.serve.http.open_inference.decode import MAX_ID
from edgeline.serve.http.open_inference.models import MAX_BATCH
from edgeline.serve.http.open_inference.statistics import STAGES
from edgeline.serve.http.request_body import MAX_FILES

Schema = dict[str, Any]

ARTIFACT_CODES = (
    *(kind.code for kind in (ArtifactError, ManifestError, DigestError, GoldenError, StoreError, MissingExtraError)),
    "candidate_crashed",
    "candidate_too_large",
    "candidate_too_slow",
    "channel_unknown",
    "channel_version_missing",
    "channels_invalid",
    "features_invalid",
    "format_unknown",
    "internal_error",
    "model_output_not_finite",
    "model_unloadable",
    "not_run_here",
    "out_of_memory",
    "spec_mismatch",
    "version_yanked",
)
"""Codes for an artifact that is not served, or a file of one that cannot be downloaded."""

CODES: dict[int, tuple[str, ...]] = {
    400: (
        "bad_request",
        "content_encoding_invalid",
        "explain_invalid",
        "explain_not_available",
        "image_empty",
        "json_invalid",
        "multipart_invalid",
        "not_supported",
        "number_not_finite",
        "parameter_reserved",
        "request_malformed",
        "tensor_invalid",
        "timeout_invalid",
        "too_many_chunks",
        "too_many_pipelined",
        "top_k_invalid",
    ),
    401: ("unauthorized",),
    403: ("management_not_offered",),
    404: ("model_unknown", "not_found"),
    405: ("method_not_allowed",),
    408: ("body_timeout", "head_timeout"),
    412: ("precondition_failed",),
    413: ("body_too_large", "image_too_large"),
    414: ("uri_too_long",),
    415: ("content_encoding_not_supported", "media_type_not_supported"),
    416: ("range_not_satisfiable",),
    422: ("image_invalid", "image_truncated", "mode_not_supported", "not_an_image"),
    431: ("headers_too_large",),
    500: ("internal_error", "model_output_not_finite"),
    501: ("not_supported",),
    503: ("deadline_exceeded", "loading", "not_ready", "overloaded", "stopping", "too_many_connections", *ARTIFACT_CODES),
    504: ("deadline_exceeded",),
}
"""Every error code, by status."""


def ref(name: str) -> Schema:
    """Return a reference to one of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def closed(needed: Schema, optional: Schema | None = None) -> Schema:
    """Return the schema of an object with these members and no others."""
    properties = {**needed, **(optional or {})}
    return {"type": "object", "properties": properties, "required": list(needed), "additionalProperties": False}


def extensible(needed: Schema, optional: Schema | None = None) -> Schema:
    """Return the schema of an object with these members and any others."""
    return {"type": "object", "properties": {**needed, **(optional or {})}, "required": list(needed)}


def listed(items: Schema, **bounds: int) -> Schema:
    """Return the schema of an array."""
    return {"type": "array", "items": items, **bounds}


def failed(codes: tuple[str, ...], more: Schema | None = None) -> Schema:
    """Return the schema of an error response with one of these codes."""
    line = {"type": "string", "minLength": 1, "pattern": "^[^\\r\\n]*$", "description": "message, on one line"}
    return closed({**(more or {}), "error": line, "code": {"enum": sorted(set(codes))}, "request_id": {"type": "string"}})


TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
ANY_OBJECT: Schema = {"type": "object"}
NULLABLE: Schema = {"type": ["object", "null"]}
BINARY: Schema = {"type": "string", "format": "binary"}
SHAPE = listed({"type": "integer", "minimum": -1})
SIZES = listed(WHOLE)
IDENTITY = {"model": TEXT, "version": {"type": "integer", "minimum": 1}, "variant": TEXT}
ALL_CODES = tuple(sorted({code for codes in CODES.values() for code in codes}))
IMAGE_CODES = (*CODES[422], "image_empty", *CODES[413], *CODES[504], "overloaded", *CODES[500])
"""Codes of one of several images, while others succeed."""

TENSOR = closed({"name": TEXT, "datatype": TEXT, "shape": SHAPE})
MODEL_TENSOR = closed({"name": TEXT, "data_type": TEXT, "dims": SHAPE}, {"label_filename": TEXT})
COUNTER = closed({"count": WHOLE, "ns": WHOLE})
PARAMETERS: Schema = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
COUNTED: Schema = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}

REJECTED_VERSION = closed(
    {"code": {"enum": sorted(set(ARTIFACT_CODES))}, "reason": TEXT, "version": {"type": ["integer", "null"]}}
)
FILE_ENTRY: Schema = {"path": TEXT, "size": WHOLE, "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"}}

SCHEMAS: dict[str, Schema] = {
    "Error": failed(ALL_CODES),
    "Class": closed(
        {"label": TEXT, "probability": {"type": "number", "minimum": 0, "maximum": 1.000001}, "index": WHOLE},
        {"evidence": listed(listed(NUMBER, minItems=1), minItems=1)},
    ),
    "Explanation": closed({"method": {"const": METHOD}, "region": listed(NUMBER, minItems=4, maxItems=4)}),
    "Prediction": closed({**IDENTITY, "predictions": listed(ref("Class"), minItems=1)}, {"explanation": ref("Explanation")}),
    "Predictions": closed(
        {
            **IDENTITY,
            "results": listed(
                {
                    "oneOf": [
                        closed({"predictions": listed(ref("Class"), minItems=1)}, {"explanation": ref("Explanation")}),
                        closed({"error": TEXT, "code": {"enum": sorted(set(IMAGE_CODES))}}),
                    ]
                },
                minItems=2,
                maxItems=MAX_FILES,
            ),
        }
    ),
    "Alive": closed({"status": {"const": "alive"}}),
    "Ready": closed(
        {
            "status": {"const": "ready"},
            **IDENTITY,
            "self_test": NULLABLE,
            "previous": {"type": ["integer", "null"]},
            "rolled_back_from": {"type": ["integer", "null"]},
            "rejected": {
                "anyOf": [
                    REJECTED_VERSION,
                    {"type": "null"},
                ]
            },
        },
        {"index": ref("Index")},
    ),
    "Model": closed(
        {
            **IDENTITY,
            "precision": TEXT,
            "task": TEXT,
            "created": TEXT,
            "labels": listed(TEXT, minItems=2),
            "preprocess": ANY_OBJECT,
            "metrics": ANY_OBJECT,
            "verification": ANY_OBJECT,
            "evaluation": NULLABLE,
            "card": {"type": ["string", "null"]},
            "self_test": NULLABLE,
            "max_bytes": {"type": "integer", "minimum": 1},
            "explains": FLAG,
            "remarks": listed(TEXT),
        }
    ),
    "Artifacts": closed(
        {
            "artifacts": listed(
                closed(
                    {
                        "name": TEXT,
                        "versions": listed(WHOLE, minItems=1),
                        "latest": WHOLE,
                        "channels": {"type": "object", "additionalProperties": WHOLE},
                    }
                )
            )
        }
    ),
    "Manifest": extensible(
        {"schema": TEXT, "name": TEXT, "version": WHOLE, "labels": listed(TEXT), "variants": listed(ANY_OBJECT)}
        | {"files": listed(extensible(FILE_ENTRY))}
    ),
    "Index": listed(
        closed({"name": TEXT, "state": {"enum": ["READY", "UNAVAILABLE"]}, "reason": TEXT}, {"version": TEXT}),
    ),
    "V2Server": closed({"name": {"const": "edgeline"}, "version": TEXT, "extensions": listed(TEXT)}),
    "V2Live": closed({"live": {"const": True}}),
    "V2Ready": closed({"live": {"const": True}, "ready": {"const": True}}),
    "V2Unready": failed(("not_ready",), {"live": {"const": True}, "ready": {"const": False}}),
    "V2ModelReady": closed({"name": TEXT, "ready": {"const": True}}),
    "V2ModelUnready": failed(("not_ready",), {"name": TEXT, "ready": {"const": False}}),
    "V2Model": closed(
        {"name": TEXT, "versions": listed(TEXT), "platform": TEXT, "inputs": listed(TENSOR), "outputs": listed(TENSOR)}
        | {"properties": {"type": "object", "additionalProperties": TEXT}}
    ),
    "V2Config": closed(
        {"name": TEXT, "platform": TEXT, "max_batch_size": WHOLE, "input": listed(MODEL_TENSOR), "output": listed(MODEL_TENSOR)}
    ),
    "V2Statistics": closed(
        {
            "model_stats": listed(
                closed(
                    {
                        "name": TEXT,
                        "version": TEXT,
                        "last_inference": WHOLE,
                        "inference_count": WHOLE,
                        "execution_count": WHOLE,
                        "inference_stats": closed(dict.fromkeys(STAGES, COUNTER)),
                        "batch_stats": listed(
                            closed(
                                {"batch_size": WHOLE} | {f"compute_{part}": COUNTER for part in ("input", "infer", "output")}
                            )
                        ),
                        "memory_usage": listed(ANY_OBJECT, maxItems=0),
                    }
                )
            )
        }
    ),
    "V2IndexRequest": extensible({}, {"ready": FLAG}),
    "V2InferRequest": extensible(
        {
            "inputs": listed(
                extensible(
                    {"name": {"const": "image"}, "datatype": {"enum": ["BYTES", "UINT8"]}, "shape": SIZES},
                    {"data": {"type": "array"}, "parameters": PARAMETERS},
                ),
                minItems=1,
                maxItems=1,
            )
        },
        {
            "id": {"type": "string", "maxLength": MAX_ID},
            "parameters": {**PARAMETERS, "properties": {"timeout": COUNTED, "priority": COUNTED, "binary_data_output": FLAG}},
            "outputs": listed(
                extensible({"name": {"enum": ["probabilities", "logits"]}}, {"parameters": PARAMETERS}),
                maxItems=2,
            ),
        },
    ),
    "V2InferReply": closed(
        {
            "model_name": TEXT,
            "model_version": TEXT,
            "outputs": listed(
                closed(
                    {"name": TEXT, "datatype": {"enum": ["FP32", "BYTES"]}, "shape": SIZES},
                    {"data": listed({"type": ["number", "string"]}), "parameters": closed({"binary_data_size": WHOLE})},
                ),
                minItems=1,
            ),
        },
        {"id": TEXT},
    ),
}
V2_IMAGES = f"1 to {MAX_BATCH} images"
