"""Batch inference as a Prefect flow: the predictions of many images, and a table of how many were of which class."""

from pathlib import Path

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from pydantic import Field

from edgeline.flows.operations.score import Scored, ScoreOptions, scored_line
from edgeline.flows.operations.score import score as score_images
from edgeline.flows.orchestration.report import artifact_key
from edgeline.serve.artifact.channels import Followed


@flow(name="edgeline-score", flow_run_name="{artifact}")
def score(
    artifact: Path = Field(description="An artifact's folder, or a name's folder in a store."),
    source: Path = Field(description="A folder of images, searched at any depth, or a CSV file with a column `path`."),
    output: str = Field(description="Folder for the Parquet files; `{name}` and `{version}` become the artifact's."),
    channel: str = Field("stable", description="Channel whose version is used, fixed when the run starts."),
    options: ScoreOptions = Field(ScoreOptions(), description="What a row has, and where the work is done."),
) -> Scored:
    """Score all images of a folder with a published artifact. A run that was stopped continues where it was.

    Returns:
        What was done. Images without a prediction are rows with an error, and do not fail the run.

    Raises:
        EdgelineError: the artifact, the source, the output folder or the engine cannot be used.
    """
    scored = score_images(Followed(artifact, channel), source, output, options)
    get_run_logger().info("%s", scored_line(scored))
    counts = {**scored.summary["labels"], **{f"error: {code}": count for code, count in scored.summary["errors"].items()}}
    create_table_artifact(
        [{"class": label, "images": count} for label, count in counts.items()],
        key=f"{artifact_key(scored.summary['artifact'])}-scores",
        description=scored_line(scored),
    )
    return scored
