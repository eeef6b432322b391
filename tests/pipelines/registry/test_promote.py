"""Two runs in turn, promotion and rollback by hand, and the trace that they leave."""

import pytest

from pipelines.registry import aliases, mlflow_store, read_back
from pipelines.registry.promote import promote, rollback
from tests.pipelines.registry.family import NAME, change_report, register, write_stages
from unetpp.errors import UserError

pytestmark = pytest.mark.slow  # each registration reads its versions back in a process of its own


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Three runs registered in turn, by their IoU at the recommended depth: 0.80, then 0.60, then 0.90."""
    folder = tmp_path_factory.mktemp("home")
    uri = f"sqlite:///{folder}/mlflow.db"
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # What a clean process predicts is a law of test_register.py; here it would cost its start seven times.
        patch.setattr(read_back, "check_in_clean_process", lambda *_: {})
        for seed, iou in enumerate((0.80, 0.60, 0.90)):
            project = write_stages(folder / f"run {seed}", seed, iou)
            found.append(register(project, uri=uri) | {"aliases": current(uri)})
        yield folder, uri, found


def current(uri: str) -> dict[str, int]:
    return {alias: int(version) for alias, version in aliases.find_aliases(mlflow_store.connect(uri), NAME).items()}


def description(uri: str, version: int) -> str:
    return str(mlflow_store.connect(uri).get_model_version(NAME, str(version)).description)


def test_worse_run_does_not_become_champion_and_a_better_one_does(home):
    _, uri, (first, worse, better) = home
    assert first["aliases"] == {"L1": 1, "L2": 2, "recommended": 1, "champion": 1}
    # L1 ... and `recommended` go to the newest run that was read back whole, champion does not.
    assert worse["aliases"] == {"L1": 3, "L2": 4, "recommended": 3, "champion": 1, "challenger": 3}
    assert worse["promotion"] == "challenger"
    assert worse["promotion_reason"].startswith(
        "worse: IoU -0.2000 [-0.2000, -0.2000] relative to the champion, version 1"
    )
    assert "in 4 groups" in worse["promotion_reason"]
    assert better["aliases"] == {"L1": 5, "L2": 6, "recommended": 5, "champion": 5}
    assert better["promotion"] == "champion"
    assert worse["promotion_reason"] in description(uri, 3)
    assert "**challenger**" in description(uri, 3)


def test_family_registered_again_is_not_judged_again(home):
    folder, uri, _ = home
    before = current(uri)
    again = register(folder / "run 1", uri=uri)
    assert (again["promotion"], again["champion"]) == ("challenger", 5)
    assert current(uri)["L1"] == 3
    register(folder / "run 2", uri=uri)
    assert current(uri) == before
    assert description(uri, 3).count("**challenger**") == 1


def test_promote_and_rollback_leave_a_trace(home, monkeypatch):
    folder, uri, _ = home
    monkeypatch.setattr(aliases, "whoami", lambda: "ana@desk")
    with pytest.raises(UserError, match="--why is empty"):
        promote(uri, f"{NAME}/3", " ")
    with pytest.raises(UserError, match=r"nuclei/77: no such version .* L1, L2, .* and the versions 1, 2, 3, 4, 5, 6"):
        promote(uri, f"{NAME}/77", "x")
    with pytest.raises(UserError, match="nuclei/5 is already the champion"):
        promote(uri, f"{NAME}@champion", "x")
    with pytest.raises(UserError, match=r"models:/other: no such model .* which has models:/nuclei"):
        rollback(uri, "other", "x")
    assert promote(uri, f"models:/{NAME}/3", "slides\nof the new scanner") == (
        "nuclei: version 3 is now champion, replacing version 5"
    )
    client = mlflow_store.connect(uri)
    assert client.get_model_version(NAME, "3").tags["promotion_by"] == "ana@desk"
    assert client.get_model_version(NAME, "5").tags["promotion"] == "former champion"
    assert "ana@desk: version 3: **champion, promoted by hand**. slides of the new scanner" in description(uri, 3)
    assert rollback(uri, NAME, "worse on frozen sections") == "nuclei: version 5 is champion again, replacing version 3"
    assert current(uri)["champion"] == 5
    assert client.get_model_version(NAME, "3").tags["promotion"] == "rolled back"
    assert "**no longer champion, rolled back to version 5**. worse on frozen sections" in description(uri, 3)
    assert "worse on frozen sections" in (client.get_registered_model(NAME).description or "")
    register(folder / "run 1", uri=uri)  # what a person rolled back does not come again by itself
    assert current(uri)["champion"] == 5
    assert "worse on frozen sections" in description(uri, 3)
    assert rollback(uri, NAME, "further") == "nuclei: version 1 is champion again, replacing version 5"
    with pytest.raises(UserError, match="version 1 is its first champion"):
        rollback(uri, NAME, "further still")
    promote(uri, f"{NAME}/5", "back")


def test_version_that_was_not_read_back_is_never_promoted(home):
    _, uri, _ = home
    client = mlflow_store.connect(uri)
    client.set_model_version_tag(NAME, "4", "verified", "false")
    with pytest.raises(UserError, match="not verified after registration"):
        promote(uri, f"{NAME}/4", "x")
    client.set_model_version_tag(NAME, "4", "verified", "true")


def test_no_recommended_depth_is_challenger_by_the_nearest_depth_and_keeps_what_is_deployed(home):
    folder, uri, _ = home
    before = current(uri)
    project = write_stages(folder / "run 3", 3, 0.99)
    change_report(project, recommended_depth=None, nearest_depth=2, recommendation="No depth meets 1 ms.")
    found = register(project, uri=uri)
    assert found["recommended"] is None
    after = current(uri)
    assert (after["champion"], after["recommended"]) == (before["champion"], before["recommended"])
    assert after["challenger"] == found["versions"]["L2"]
    assert "No depth meets 1 ms." in found["promotion_reason"]
    assert description(uri, found["versions"]["L1"]).startswith("L1: no depth is recommended; L2 is the nearest.")
