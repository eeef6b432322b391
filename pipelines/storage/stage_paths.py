"""Where the stages of a project write their outputs: only dvc.yaml says it."""

import itertools
from pathlib import Path

from pipelines.core.files import read_yaml
from unetpp.errors import UserError


def stage_arguments(stage: str) -> dict[str, Path]:
    """The paths of a stage's options, from dvc.yaml in this folder.

    Raises:
        UserError: no dvc.yaml here, or one without this stage.
    """
    stages = read_yaml(Path("dvc.yaml"), "run from the project's folder", ("stages",))["stages"]
    try:
        command = stages[stage]["cmd"].split()
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"dvc.yaml: found no stage {stage} ({error!r}); run from the project's folder") from None
    return {name.removeprefix("--"): Path(path) for name, path in itertools.pairwise(command) if name[:2] == "--"}
