"""The conformance checks: a correct server passes them, and each planted fault fails the check for it."""

from pathlib import Path
from typing import Any

import pytest

from edgeline.serve.conformance.catalogue import GROUPS, REQUIRED, checks, table
from edgeline.serve.conformance.command import describe, reach
from edgeline.serve.conformance.runner import Result, run
from tests.support.cases import cases

ROOT = Path(__file__).resolve().parents[3]
JSON_ONLY = {
    "binary_equals_json_input",
    "client_infer_json",
    "curl_json",
    "header_of_the_whole_body",
    "infer_json_data",
    "infer_nested_data",
    "rejects_data_of_the_wrong_size",
}


def outcomes(results: list[Result], outcome: str) -> dict[str, str]:
    return {result.check.id: result.detail for result in results if result.outcome == outcome}


def test_edgelines_server_passes_every_check_with_pixels(site: Any) -> None:
    results = run(reach(site.url, "colors.pixels"))
    assert [result.check for result in results] == checks()
    assert outcomes(results, "failed") == {}
    assert outcomes(results, "skipped") == {}


@pytest.mark.long
def test_edgelines_server_passes_every_check_that_does_not_need_json_inputs(site: Any) -> None:
    results = run(reach(site.url))
    assert outcomes(results, "failed") == {}
    assert outcomes(results, "skipped").keys() == JSON_ONLY


def test_the_given_image_file_is_sent(site: Any, artifact_template: Path, tmp_path: Path) -> None:
    assert outcomes(run(reach(site.url, image=artifact_template / "golden" / "0.jpg"), "infer_id"), "failed") == {}
    (tmp_path / "text").write_text("not an image")
    found = outcomes(run(reach(site.url, image=tmp_path / "text"), "infer_id"), "failed")
    assert "422" in found["infer_id"]


@pytest.mark.long
def test_a_minimal_correct_server_conforms(tiny: Any) -> None:
    with tiny() as url:
        target = reach(url)
        results = run(target)
    assert outcomes(results, "failed") == {}
    assert describe(target, results)["conforms"]


FAULTS = {
    "201": ("infer_id", "status should be 200"),
    "500 for bad requests": ("rejects_text", "status should be 4xx; seen: 500"),
    "a batch counted once": ("inferences_are_counted", "inference_count after 3 more"),
    "a charset": ("rejects_text", "an error's Content-Type should be 'application/json'"),
    "a queue counter that stands still": ("queue_grows", "success and queue after 3 more"),
    "always raw": ("binary_output_overridden", "sum should have data"),
    "an integer version": ("versions_are_numbers", "seen: 1"),
    "another name in the configuration": ("config_names", "seen: 'total'"),
    "breaks": ("nan", "status should be 200; seen: '500"),
    "closes": ("keep_alive", "the connection should stay open"),
    "errors as objects": ("client_error", "the message should be a sentence"),
    "errors under detail": ("rejects_an_unknown_model", "string member `error`"),
    "accepts NaN": ("nan", "status should be 4xx; seen: 200"),
    "accepts left over": ("bytes_left_over", "status should be 4xx; seen: 200"),
    "accepts nested more": ("nested_101_deep", "status should be 4xx; seen: 200"),
    "accepts sequences": ("sequence", "status should be 4xx; seen: 200"),
    "accepts shared memory": ("shared_memory", "status should be 4xx; seen: 200"),
    "accepts twice in one object": ("duplicate_key", "status should be 4xx; seen: 200"),
    "accepts decompresses to more": ("gzip_bomb", "status should be 4xx; seen: 200"),
    "nested data": ("json_outputs_are_flat", "sum should be flat"),
    "never raw": ("binary_output", "Content-Type should be 'application/octet-stream'"),
    "no configuration": ("config", "status should be 200"),
    "no framing header": ("binary_output", "seen"),
    "no id": ("infer_id", "id should be 'r-1'; seen: None"),
    "answers an extension that it does not advertise": ("unsupported_extensions", "status should be 4xx; seen: 200"),
    "compresses everything": ("metadata_is_never_compressed", "Content-Encoding of /v2 should be None"),
    "parameters on JSON outputs": ("json_outputs_have_no_parameters", "seen: {'content_type': 'np'}"),
    "raw tensors in another order": ("binary_equals_json_output", "the same to the bit"),
    "the batch in dims": ("config_batch", "the batch and the dims of sum"),
    "waits for acknowledgements": ("no_delayed_acknowledgement", "the median should be under 30 ms"),
    "version v1": ("versions_are_numbers", "seen: 'v1'"),
}


QUICK = ("201", "a batch counted once", "accepts NaN", "no framing header", "the batch in dims", "version v1")
"""Each fault takes a quarter of a second, because it starts another pytest."""


@pytest.mark.parametrize(("fault", "expected"), cases({fault: (fault, found) for fault, found in FAULTS.items()}, quick=QUICK))
def test_a_fault_fails_the_check_for_it(tiny: Any, fault: str, expected: tuple[str, str]) -> None:
    id, sentence = expected
    with tiny(fault) as url:
        found = outcomes(run(reach(url), id), "failed")
    assert sentence in found[id]


def test_a_failed_robustness_check_does_not_affect_conformance(tiny: Any) -> None:
    with tiny("accepts NaN") as url:
        target = reach(url)
        report = describe(target, run(target, "nan or infer_id"))
    assert report["conforms"]
    assert report["counts"]["robustness"]["failed"] == 1


def test_every_check_has_its_own_id_and_a_sentence() -> None:
    found = checks()
    assert len({check.id for check in found}) == len(found) > 100
    assert [check.id for check in found if not check.sentence.endswith(".")] == []
    assert {check.group for check in found} == {*GROUPS.values()} > {*REQUIRED}


def test_the_documentation_lists_every_check() -> None:
    assert table() in (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
