"""V2 replies, and compressed bodies in both directions."""

import gzip
import json
import tracemalloc
import zlib

import numpy as np
import pytest

from edgeline.serve.errors import ArtifactError, InputError
from edgeline.serve.http.open_inference.encode import Output, classify, compress, decompress, encode

VALUES = np.array([[0.1, 2.5], [1e-42, -7]], np.float32)
LABELS = ("a:b", "é")


def output(*, binary: bool, name: str = "p", values: np.ndarray = VALUES) -> Output:
    return Output(name, values, values.shape, binary)


def test_a_json_reply_is_flat_has_no_parameters_and_keeps_every_bit() -> None:
    body, length = encode({"model_name": "m"}, [output(binary=False)])
    found = json.loads(body)
    assert length is None
    assert found == {
        "model_name": "m",
        "outputs": [{"name": "p", "datatype": "FP32", "shape": [2, 2], "data": found["outputs"][0]["data"]}],
    }
    assert np.array(found["outputs"][0]["data"], np.float32).tobytes() == VALUES.tobytes()


def test_raw_outputs_follow_the_json_in_their_order() -> None:
    outputs = [output(binary=True, name="p"), output(binary=False, name="q"), output(binary=True, name="r", values=-VALUES)]
    body, length = encode({}, outputs)
    head = json.loads(body[:length])
    assert [o.get("parameters") for o in head["outputs"]] == [{"binary_data_size": 16}, None, {"binary_data_size": 16}]
    assert ["data" in o for o in head["outputs"]] == [False, True, False]
    assert body[length:] == VALUES.tobytes() + (-VALUES).tobytes()


def test_text_is_sent_as_strings_or_after_its_lengths() -> None:
    for binary in (False, True):
        body, length = encode({}, [Output("p", ["é".encode(), b""], (2,), binary)])
        if binary:
            assert body[length:] == b"\x02\0\0\0\xc3\xa9" + b"\0\0\0\0"
        else:
            assert json.loads(body)["outputs"] == [{"name": "p", "datatype": "BYTES", "shape": [2], "data": ["é", ""]}]


def test_the_json_of_a_reply_is_ascii_so_that_characters_are_bytes() -> None:
    body, length = encode({"id": "é\ud800"}, [output(binary=True)])
    assert body[:length].isascii()
    assert json.loads(body[:length])["id"] == "é\ud800"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("binary", [False, True])
def test_a_number_that_is_not_finite_is_never_sent(bad: float, binary: bool) -> None:
    with pytest.raises(ArtifactError) as caught:
        encode({}, [output(binary=binary, values=np.array([[1, bad]], np.float32))])
    assert caught.value.code == "model_output_not_finite"


CLASSES = {
    "the best": (1, [b"2.500000:1:\xc3\xa9", b"0.000000:0:a:b"]),
    "all": (2, [b"2.500000:1:\xc3\xa9", b"0.100000:0:a:b", b"0.000000:0:a:b", b"-7.000000:1:\xc3\xa9"]),
    "more than there are": (9, [b"2.500000:1:\xc3\xa9", b"0.100000:0:a:b", b"0.000000:0:a:b", b"-7.000000:1:\xc3\xa9"]),
}


@pytest.mark.parametrize(("k", "elements"), CLASSES.values(), ids=CLASSES)
def test_classes_are_sorted_best_first(k: int, elements: list[bytes]) -> None:
    found = classify("p", VALUES, k, LABELS, binary=True)
    assert (found.data, found.shape) == (elements, (2, min(k, 2)))


def test_equal_values_are_in_the_order_of_their_index() -> None:
    values = (np.arange(1000) % 3).astype(np.float32)
    found = classify("p", values[None], 1000, [""] * 1000, binary=True)
    indices = [int(element.split(b":")[1]) for element in found.data]
    assert indices == sorted(range(1000), key=lambda index: (-values[index], index))


def test_a_very_large_output_is_not_sorted() -> None:
    with pytest.raises(InputError, match="at most 1,000,000 values"):
        classify("p", np.zeros((2, 500_001), np.float32), 1, [""] * 500_001, binary=True)


# Packed bodies

BODY = b"abc" * 100_000
PACKED = {
    "gzip": ("gzip", gzip.compress(BODY)),
    "deflate": ("deflate", zlib.compress(BODY)),
    "capitals": (" GZip ", gzip.compress(BODY)),
    "in pieces that do not shrink": ("gzip", gzip.compress(BODY, 0)),
    "none": ("", BODY),
    "identity": ("identity", BODY),
}


@pytest.mark.parametrize(("encoding", "packed"), PACKED.values(), ids=PACKED)
def test_a_compressed_body_is_decompressed(encoding: str, packed: bytes) -> None:
    assert decompress(packed, encoding, len(BODY)) == BODY


BAD = {
    "brotli": (BODY, "br", "content_encoding_not_supported"),
    "two encodings": (gzip.compress(BODY), "gzip, deflate", "content_encoding_not_supported"),
    "no gzip": (b"hello", "gzip", "content_encoding_invalid"),
    "deflate without zlib's header": (zlib.compress(BODY)[2:-4], "deflate", "content_encoding_invalid"),
    "deflate as gzip": (zlib.compress(BODY), "gzip", "content_encoding_invalid"),
    "cut off": (gzip.compress(BODY)[:-9], "gzip", "content_encoding_invalid"),
    "a wrong checksum": (gzip.compress(BODY)[:-8] + bytes(8), "gzip", "content_encoding_invalid"),
    "more behind it": (gzip.compress(BODY) + b"more", "gzip", "content_encoding_invalid"),
    "far more behind it": (gzip.compress(BODY) + bytes(200_000), "gzip", "content_encoding_invalid"),
    "nothing": (b"", "gzip", "content_encoding_invalid"),
    "a byte too many": (gzip.compress(BODY + b"x"), "gzip", "body_too_large"),
}


@pytest.mark.parametrize(("packed", "encoding", "code"), BAD.values(), ids=BAD)
def test_a_body_that_cannot_be_decompressed_is_rejected(packed: bytes, encoding: str, code: str) -> None:
    with pytest.raises(InputError) as caught:
        decompress(packed, encoding, len(BODY))
    assert caught.value.code == code


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_rejected_within_the_memory_of_the_limit(encoding: str) -> None:
    packer = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(100)) + packer.flush()
    assert len(bomb) < 2**20
    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        decompress(bomb, encoding, 2**20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.code == "body_too_large"
    assert peak < 3 * 2**20


ACCEPTED = {
    "nothing": ("", None),
    "gzip": ("gzip", "gzip"),
    "deflate": ("deflate", "deflate"),
    "both": ("deflate, gzip;q=0.5", "gzip"),
    "gzip not accepted": ("gzip;q=0, deflate", "deflate"),
    "neither accepted": ("gzip; q=0.0, deflate;q=0", None),
    "brotli": ("br", None),
    "identity": ("identity", None),
    "capitals": ("GZIP", "gzip"),
}


@pytest.mark.parametrize(("accepted", "encoding"), ACCEPTED.values(), ids=ACCEPTED)
def test_a_reply_is_compressed_as_its_client_accepts(accepted: str, encoding: str | None) -> None:
    body, name = compress(BODY, accepted)
    assert name == encoding
    assert decompress(body, name or "", len(BODY)) == BODY
