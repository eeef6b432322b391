"""Images in a bucket, predicted by a Ray cluster of two nodes of which one is lost, as is the driver."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.pipelines.prediction.far import expected_masks, make_images, make_model, masks_in, puts
from tests.ray_cluster import RayCluster
from tests.waiting import wait_for

pytestmark = pytest.mark.ray
NUMBER = 40


def start(folder: Path, environment: dict[str, str], *words: str) -> subprocess.Popen:
    command = [sys.executable, "-u", "-m", "pipelines.cli", "predict", *words]
    with open(folder / "log", "w") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


class Held:
    """Holds back the store's answers to masks from the `number`th on, until it is released."""

    def __init__(self, bucket, number: int):
        self.reached, self.released, self._left = threading.Event(), threading.Event(), number

        def hold(request, answer):
            if request.method == "PUT" and ".png" in request.path:
                self._left -= 1
                if self._left <= 0:
                    self.reached.set()
                    self.released.wait(120)
            return answer

        bucket.fault = hold


def test_masks_are_the_local_ones_though_the_driver_and_a_node_are_killed_in_the_middle(bucket, monkeypatch, tmp_path):
    images, model = make_images(NUMBER), make_model(tmp_path / "model")
    bucket.put(images)
    expected = expected_masks(images, model, tmp_path / "local")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)  # the driver says it to the nodes
    words = [f"s3://{bucket.name}/set", "--model", str(model), "--out", f"s3://{bucket.name}/out", "--ray"]
    cluster, log = RayCluster(num_nodes=2, cpus=1), tmp_path / "log"
    held = []
    try:
        environment = cluster.env | {"AWS_ENDPOINT_URL": bucket.proxy.url}
        words.append(cluster.driver_address)

        def start_held() -> subprocess.Popen:
            """The command, in the middle of what both nodes do."""
            held.append(Held(bucket, 6))
            driver = start(tmp_path, environment, *words)
            wait_for(held[-1].reached.is_set, driver, log)
            wait_for(lambda: all(cluster.running("_predict_part", node) for node in (0, 1)), driver, log)
            return driver

        driver = start_held()
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        wait_for(lambda: not cluster.running("_predict_part"), log=log)
        held[0].released.set()
        driver = start_held()
        cluster.kill_node(1)
        held[1].released.set()
        assert 6 <= len(masks_in(bucket)) < NUMBER
        assert driver.wait(120) == 0, log.read_text()
    finally:
        for one in held:
            one.released.set()
        cluster.close()
    assert masks_in(bucket) == expected
    assert re.search(rf"\d+ of {NUMBER} images are already done", log.read_text())
    sent = puts(bucket)
    assert len(sent) <= NUMBER + 12, "what a killed one had not sent, and no more, is done again"


@pytest.mark.nightly
def test_folders_by_all_cores_of_this_machine_with_an_image_that_is_none(tmp_path):
    images, model = make_images(8), make_model(tmp_path / "model")
    expected = expected_masks(images, model, tmp_path / "local")
    (tmp_path / "local/in/broken.png").write_bytes(b"no picture")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    driver = start(tmp_path, environment, "local/in", "--model", str(model), "--out", "out", "--ray")
    log = tmp_path / "log"
    assert driver.wait(300) == 2, log.read_text()
    assert re.search(r"1 of 9 images.*\n.*/local/in/broken.png: ", log.read_text())
    assert {one.name: one.read_bytes() for one in (tmp_path / "out").glob("*.png")} == expected


DEADLY = """
import os
from pipelines.prediction import ray_tasks
from pipelines.prediction.addresses import Item
from pipelines.prediction.carried import Carried
from pipelines.prediction.opening import Asked

def part(_model, _work, items, _threads):
    if any(item.address == "deadly" for item in items):
        os._exit(1)
    return [None] * len(items)

ray_tasks._predict_part = part
items = [Item(name, 1, 0) for name in (*"abcdefgh", "deadly", *"ijklmnop")]
found = dict(ray_tasks.predict_on_ray(items, Carried({}, Asked(engine="torch"), (32, 32)), None))
print(len(found), [why for why in found.values() if why])
"""


@pytest.mark.nightly
def test_an_image_that_ends_its_process_is_named_and_those_beside_it_are_done(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", DEADLY]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "17 ['deadly: its process ended 4 times (WorkerCrashedError" in done.stdout, done.stdout + done.stderr
