"""Versions that were registered without sums: refused with the command that seals them, and sealed by it."""

from pathlib import Path

import pytest
import torch

from pipelines.registry import mlflow_store, model_versions
from pipelines.registry.load import load_registered, seal_registered
from tests.canary import Canary
from unetpp import UserError
from unetpp.models.model_file import Trained
from unetpp.network.model import NestedUNet

NAME = "cells"


@pytest.fixture(scope="module")
def trained() -> Trained:
    torch.manual_seed(0)
    return Trained(NestedUNet((4, 6, 8)).eval(), None)


@pytest.fixture(scope="module")
def store(tmp_path_factory, trained) -> str:
    """A registry with three versions, of L1, L2 and L2."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = mlflow_store.connect(uri)
    experiment = client.create_experiment("tests", artifact_location=str(folder / "artifacts"))
    run = client.create_run(experiment)
    trained.save(folder / "model.safetensors")
    client.log_artifact(run.info.run_id, str(folder / "model.safetensors"), "model")
    client.create_registered_model(NAME)
    for number, depth in enumerate((1, 2, 2)):
        tags = {"depth": str(depth), "fingerprint": str(number)}
        model = model_versions.find_or_log_model(client, run, f"L{depth}", trained, depth, {}, tags)
        model_versions.find_or_create_version(client, NAME, model, run, tags)
    return uri


def folder_of(version: str) -> Path:
    return Path(model_versions.location(NAME, version))


def forget_the_tag(store: str, version: str) -> None:
    client = mlflow_store.connect(store)
    client.delete_logged_model_tag(model_versions.logged_model_id(client, NAME, version), model_versions.TAG)


@pytest.mark.parametrize("lost", ["tag", "sums", "all but a graph"])
def test_a_version_without_sums_is_refused_with_the_command_that_seals_it(store, trained, lost):
    forget_the_tag(store, "2")
    files = folder_of("2")
    (files / "evidence").mkdir(exist_ok=True)
    (files / "evidence/report.html").write_text("a report")
    if lost == "sums":
        (files / "SHA256SUMS").unlink()
    if lost == "all but a graph":  # as the first versions were registered
        for name in ("MLmodel", "SHA256SUMS", "model.safetensors"):
            (files / name).unlink()
        (files / "data").mkdir()
        (files / "data/model.pt2").write_bytes(b"a graph")
    with pytest.raises(
        UserError, match=r"models:/cells/2: .*without checksums.* `unetpp seal cells/2` seals it as it is"
    ):
        load_registered(f"models:/{NAME}/2", store)
    assert seal_registered(f"{NAME}/2", store) == "cells/2 is sealed as it is"
    assert (files / "evidence/report.html").read_text() == "a report"
    image = torch.rand(1, 3, 20, 24)
    with torch.inference_mode():
        found = load_registered(f"models:/{NAME}/2", store).segmenter()(image)
        torch.testing.assert_close(found, trained.segmenter(2)(image), atol=1e-5, rtol=0)
    assert seal_registered(NAME, store).splitlines() == [f"cells/{n} is already sealed, and intact" for n in (1, 2, 3)]


def test_damage_is_not_sealed(store):
    weights = folder_of("1") / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(UserError, match=r"models:/cells/1: model\.safetensors: found sha256"):
        seal_registered(f"{NAME}/1", store)
    forget_the_tag(store, "1")
    (folder_of("1") / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: found the sha256 .*damaged") as refused:
        seal_registered(f"models:/{NAME}", store)
    assert str(refused.value).splitlines()[1:] == [f"cells/{n} is already sealed, and intact" for n in (2, 3)]


def test_what_somebody_put_into_the_store_is_not_run(store, tmp_path):
    canary = Canary(tmp_path)
    files = folder_of("3")
    for _, content in canary.forms():
        (files / "python_model.pkl").write_bytes(content)
        (files / "model.safetensors").write_bytes(content)
        flavor = (
            "flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\n    python_model: python_model.pkl\n"
        )
        (files / "MLmodel").write_text(flavor)
        for read in (load_registered, seal_registered):
            with pytest.raises(UserError, match="models:/cells/3"):
                read(f"models:/{NAME}/3", store)
            assert canary.alive
