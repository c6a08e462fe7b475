"""The notebook that a newcomer runs first."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


@pytest.mark.long
def test_the_quickstart_notebook_runs_and_shows_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat  # imports for a second, in every worker
    from nbclient import NotebookClient

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output for output in outputs if output.output_type == "execute_result"]
    assert "digits version 1" in shown[0].data["text/plain"]
    assert shown[0].data["text/html"].startswith("<table>")
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert "95 % interval" in printed
    assert (tmp_path / "artifacts" / "store" / "digits" / "1" / "manifest.json").is_file()
    progress = [output.data["text/plain"] for output in outputs if output.output_type == "display_data"]
    assert any("train" in text and "done in" in text for text in progress)
    assert any("━" in text for text in progress), "no progress bar"


def test_the_notebook_names_no_folder_of_the_machine_it_was_written_on() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert str(Path.home()) not in text
    assert str(NOTEBOOK.parents[1]) not in text
