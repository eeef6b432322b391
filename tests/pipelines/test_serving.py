"""`mlflow models serve` as the guide says it, asked over HTTP."""

import json
import subprocess
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import torch

from benchmarks.serving import as_request, ask_from_many, images_of, load, post, serving
from pipelines.registry import mlflow_store, model_versions, read_back
from pipelines.registry.load import fetch_version
from unetpp import NestedUNet, UserError
from unetpp.inference.predictor import Predictor
from unetpp.models.model_file import Trained

pytestmark = pytest.mark.slow
GUIDE = Path(__file__).parents[2] / "docs/serving.md"
NAME = "unetpp-nuclei"


@pytest.fixture(scope="module")
def trained() -> Trained:
    torch.manual_seed(0)
    network = NestedUNet((4, 6, 8)).eval()
    with torch.no_grad():  # about half of the pixels are foreground
        for depth, logits in zip(network.depths, network(torch.randn(1, 3, 64, 64)), strict=True):
            network.heads[str(depth)].bias -= logits.median()
    return Trained(network, None)


@pytest.fixture(scope="module")
def store(tmp_path_factory, trained):
    """A registry with both depths; L2 is the champion."""
    folder = tmp_path_factory.mktemp("a store")
    uri = f"sqlite:///{folder}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        client = mlflow_store.connect(uri)
        client.create_registered_model(NAME)
        experiment = client.create_experiment("tests")
        run = client.create_run(experiment, run_name="one")
        versions = []
        for depth in trained.depths:
            tags = {"fingerprint": "f", "depth": str(depth)}
            model = model_versions.find_or_log_model(client, run, f"L{depth}", trained, depth, {}, tags)
            versions.append(model_versions.find_or_create_version(client, NAME, model, run, tags))
        client.set_registered_model_alias(NAME, "champion", versions[-1].version)
        yield client


@pytest.fixture(scope="module")
def server(store, tmp_path_factory):  # noqa: ARG001 - for its effect
    """Host and port of the served champion."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    with serving(f"models:/{NAME}@champion", log) as address:
        inside = [one for one in psutil.Process().children(recursive=True) if "uvicorn" in " ".join(one.cmdline())]
        assert inside
        yield address
    assert not any(one.is_running() for one in inside)


def expected(trained: Trained, image: np.ndarray, depth: int = 2) -> np.ndarray:
    return (Predictor(trained, depth).probs(image)[0] >= 0.5).astype(np.uint8)


def test_the_guides_curl_line_gives_the_mask(server, trained, tmp_path):
    (image,) = images_of(80, 1)
    cv2.imwrite(str(tmp_path / "scan.png"), image[:, :, ::-1])
    lines = GUIDE.read_text().split("\n\n")
    (command,) = [block for block in lines if "curl -s" in block]
    assert "127.0.0.1:5001" in command
    command = command.replace(":5001", f":{server[1]}")
    subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=tmp_path, check=True, timeout=60)
    mask = cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask is not None
    assert np.array_equal(mask, expected(trained, image) * 255)
    assert 0.02 < (mask > 0).mean() < 0.98


def test_images_of_different_sizes_and_depths_are_answered_in_order(server, trained):
    images = images_of(64, 1) + images_of(96, 1)
    for depth in (1, 2):
        status, answer = post(server, "/invocations", as_request(images, depth=depth))
        assert status == 200
        for mask, image in zip(json.loads(answer)["predictions"], images, strict=True):
            assert np.array_equal(mask, expected(trained, image, depth))


def test_nothing_is_lost_or_mixed_up_at_eight_clients(server):
    bodies = [as_request([image], encoding="png") for image in images_of(48, 4)]
    for clients in (1, 8):
        found = load(server, bodies, clients, num_requests=40)
        assert found["lost"] == 0
        assert found["requests_per_s"] > 0


def test_a_burst_with_a_budget_is_answered_as_each_answer_says(server, trained):
    (image,) = images_of(64, 1)
    masks = {depth: expected(trained, image, depth).tolist() for depth in (1, 2)}
    alone = as_request([image], details=True, max_latency_ms=1e6)
    (found,) = json.loads(post(server, "/invocations", alone)[1])["predictions"]
    assert (found["depth"], found["engine"], found["within"]) == (2, "torch", True)
    body = as_request([image], details=True, max_latency_ms=20, degrade=True)
    for status, answer, _ in ask_from_many(server, [body], num_clients=8, num_requests=24)[0]:
        assert status == 200
        (found,) = json.loads(answer)["predictions"]
        assert found["mask"] == masks[found["depth"]]
        assert found["within"] == (found["latency_ms"] <= 20)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "valid JSON"),  # by MLflow
        (b'{"inputs": ["no image!"]}', "image 1 of 1: found text that is not base64"),  # by us; more in test_served
        (b'{"inputs": [[[0, 1]]], "params": {"threshold": "high"}}', "threshold"),
    ],
    ids=str,
)
def test_a_bad_request_gets_a_400_that_says_why(server, body, reason):
    status, answer = post(server, "/invocations", body)
    assert status == 400, answer
    assert reason in json.loads(answer)["message"]
    assert b"Traceback" not in answer


def test_a_process_of_its_own_passes_a_right_version_and_names_the_file_that_somebody_changed(store, trained):
    location = store.get_logged_model(model_versions.logged_model_id(store, NAME, "2")).artifact_location
    weights = Path(location) / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        reasons = read_back.check_in_clean_process(NAME, {1: "1", 2: "2"}, trained)
        with pytest.raises(UserError, match=r"models:/unetpp-nuclei/2: model\.safetensors: found sha256"):
            fetch_version(NAME, "2")
    finally:
        weights.write_bytes(content)
    assert set(reasons) == {2}
    assert "model.safetensors: found sha256" in reasons[2]


def test_sums_that_were_replaced_together_with_the_weights_are_refused(store):
    location = store.get_logged_model(model_versions.logged_model_id(store, NAME, "1")).artifact_location
    sums = Path(location) / "SHA256SUMS"
    content = sums.read_text()
    sums.write_text(content.replace("0", "1"))
    try:
        with pytest.raises(UserError, match=r"models:/unetpp-nuclei/1: SHA256SUMS: its sha256 is not that"):
            fetch_version(NAME, "1")
    finally:
        sums.write_text(content)
    assert fetch_version(NAME, "1").network.depths == (1,)


def test_a_version_without_its_files_is_refused_by_their_name(store, tmp_path):
    location = store.get_logged_model(model_versions.logged_model_id(store, NAME, "1")).artifact_location
    weights = Path(location) / "model.safetensors"
    weights.rename(tmp_path / "weights")
    try:
        with pytest.raises(UserError, match=r"model\.safetensors: no such file in .*artifacts"):
            fetch_version(NAME, "1")
    finally:
        (tmp_path / "weights").rename(weights)
