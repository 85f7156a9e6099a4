"""The last stage: `report.json` and `report.html`, from the results in the workdir."""

from jaxdrl.report import build
from jaxdrl.training import distributed
from jaxdrl.training.context import Run

name = "report"


def run(run: Run) -> dict:
    """Writes the report.

    Args:
        run: The run, with evaluate finished.

    Returns:
        The paths, relative to the workdir.
    """
    run.writer.flush()
    return distributed.from_first(distributed.on_first(lambda: build.write(run.workdir)))
