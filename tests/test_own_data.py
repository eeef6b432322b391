"""Anyone's data by two commands: `unetpp init` and `dvc repro` of the installed wheel, in an empty folder."""

from pathlib import Path

import pytest
import yaml

from tests.own_data import MADE, OwnProject
from tests.wheels import Installed

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), shared=True)


def make_family(installed: Installed, place: Path, data: str, minutes: str) -> OwnProject:
    """The two commands; checks that a version of every depth is registered."""
    project = OwnProject(installed, place)
    print(project.init(data, "--minutes", minutes))
    print(project.dvc("repro"))
    versions = project.json("reports/register/versions.json")
    (widths,) = yaml.safe_load((project.folder / "params.yaml").read_text())["search"]["widths"]
    assert versions["versions"] == {f"L{depth}": depth for depth in range(1, len(widths))}
    assert versions["model_name"] == "project"
    return project


@pytest.mark.parametrize(
    "name",
    ["membranes", pytest.param("kvasir", marks=pytest.mark.nightly), pytest.param("voc", marks=pytest.mark.nightly)],
)
def test_a_drawn_set_becomes_a_registered_family_by_two_commands(installed, tmp_path, name):
    MADE[name](tmp_path / "their data")
    project = make_family(installed, tmp_path, "their data", minutes="0.2")
    # Folders of a user's own that are called as packages of ours change nothing, and nothing is stale.
    for package in ("pipelines", "unetpp_", "torch"):
        (project.folder / package).mkdir()
        (project.folder / package / "__init__.py").write_text("raise SystemExit('not this one')\n")
    assert "Running stage" not in project.dvc("repro").replace("Running stage 'code'", "")


@pytest.mark.shared_data
@pytest.mark.nightly
@pytest.mark.parametrize("name", ["camvid", "pets"])
def test_a_real_set_becomes_a_registered_family_by_two_commands(installed, tmp_path, name, shared_data):
    make_family(installed, tmp_path, str(shared_data / name), minutes="1")
