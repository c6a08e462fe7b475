"""The pages for devices match the code next to them, and that code matches the Python code that it was ported from."""

import re
from pathlib import Path

import pytest

from edgeline.serve.artifact.manifest import SCHEMA
from edgeline.serve.preprocess import INTERPOLATIONS, Limits
from edgeline.serve.runtime.session import EXACT, SETTINGS

DEVICES = Path(__file__).resolve().parents[2] / "docs" / "devices"
LANGUAGES = {"python": ".py", "cpp": ".[ch]pp", "android": ".kt", "ios": ".swift"}
PORTS = ["cpp", "android", "ios"]


def code(language: str) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((DEVICES / language).glob(f"*{LANGUAGES[language]}")))


def page(language: str) -> str:
    return (DEVICES / language / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_page_links_every_file_next_to_it_and_the_overview_links_the_page(language: str) -> None:
    files = {path.name for path in (DEVICES / language).iterdir()} - {"README.md", "__pycache__"}
    assert set(re.findall(r"\]\(([\w.]+)\)", page(language))) == files
    assert f"]({language}/README.md)" in (DEVICES / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_page_explains_how_golden_samples_are_run_and_what_to_do_when_they_fail(language: str) -> None:
    assert "golden samples" in page(language)
    assert re.search(r"[Ww]hen (its )?golden\s+samples fail", page(language))


@pytest.mark.parametrize("language", PORTS)
def test_a_port_has_every_filter_the_schema_and_the_limits(language: str) -> None:
    text = code(language)
    for name in INTERPOLATIONS:
        assert f'"{name}"' in text
    assert SCHEMA in text
    assert str(Limits().max_pixels) in re.sub(r"[_']", "", text)
    assert re.search(rf"\b{Limits().max_bytes >> 20}L? (<<|shl) 20\b", text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_session_has_the_settings_that_the_model_was_verified_with(language: str) -> None:
    text = code(language)
    if language == "python":
        text = (DEVICES / "python" / "device.py").read_text(encoding="utf-8")
    for key, value in SETTINGS.items():
        assert re.search(rf'"{re.escape(key)}",\s*(value: )?"{value}"', text), key
    if language in ("python", "cpp"):  # which may run on x86
        assert all(f'"{key}", "{value}"' in text for key, value in EXACT.items())
    assert "ORT_DISABLE_TELEMETRY" in text + page(language)


def test_the_lines_of_the_swift_page_call_what_the_swift_files_declare() -> None:
    text = code("ios")
    declared = set(re.findall(r"func (\w+)", text)) | set(re.findall(r"(?:class|struct) (\w+)", text))
    blocks = "\n".join(re.findall(r"```swift\n(.*?)```", page("ios"), re.DOTALL))
    called = set(re.findall(r"\b(\w+)\(", blocks))
    assert called - {"url", "appendingPathComponent", "compileModel"} <= declared
    assert called >= {"verify", "pixels", "answer", "OnnxClassifier", "CoreMLClassifier"}


def test_swift_and_kotlin_declare_the_same_steps() -> None:
    steps = {"fit", "upright", "cut", "resizeOneWay", "decode", "pixels", "verify", "answer", "largestDifference"}
    for language, word in (("android", "fun"), ("ios", "func")):
        assert steps <= set(re.findall(rf"\b{word} (\w+)", code(language))), language
