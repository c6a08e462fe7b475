"""Any V2 request is read as tensors that fit the model or rejected with an InputError."""

import json
import sys

import atheris

with atheris.instrument_imports(include=["serve"]):
    from edgeline.serve.errors import InputError
    from edgeline.serve.http.open_inference.decode import Signature, decode
    from edgeline.serve.http.open_inference.encode import decompress
    from edgeline.serve.http.open_inference.tensors import Spec

OUTPUTS = (Spec("probabilities", "FP32", (-1, 4)), Spec("logits", "FP32", (-1, 4)))
MODELS = [
    Signature((Spec("image", "BYTES", (-1, 1), is_text=False),), OUTPUTS, 64),
    Signature((Spec("image", "UINT8", (-1, 2, 3, 3)),), OUTPUTS, 64),
    Signature((Spec("image", "FP32", (-1, 2)), Spec("more", "BYTES", (-1, 1))), OUTPUTS, 64),
]
PIXELS = {"name": "image", "shape": [1, 2, 3, 3], "datatype": "UINT8"}
FORMS = [
    {"inputs": [PIXELS | {"data": [1] * 18}]},
    {"inputs": [PIXELS | {"parameters": {"binary_data_size": 18}}], "outputs": [{"name": "logits"}]},
    {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 8}}], "id": "1"},
]


def once(data: bytes) -> None:
    """The first three bytes choose model, framing, encoding and a valid form whose text is changed by the rest."""
    if len(data) < 4:
        return
    choice, at, header, rest = data[0], data[1], data[2], data[3:]
    model, form = MODELS[choice % 3], choice // 3 % 4
    body = rest
    if form < 3:
        text = json.dumps(FORMS[form]).encode()
        cut = at % len(text)
        body = text[:cut] + rest + text[cut + len(rest) :] if choice & 64 else text + rest
    lengths = [None, str(len(body)), "0", str(header), rest[:5].decode("latin-1")]
    try:
        if choice & 128:
            body = decompress(body, "gzip" if choice & 32 else "deflate", 100_000)
        decode(body, lengths[header % 5], model, json_reply=bool(header & 8))
    except InputError:
        return


atheris.Setup(sys.argv, once)
atheris.Fuzz()
