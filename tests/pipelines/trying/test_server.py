"""The page's server answers its own page alone, and what it gives is what `unetpp predict` writes."""

import http.client
import io
import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipelines.predict import predict
from pipelines.trying import server as stage
from pipelines.trying.subject import find_subject
from tests.pipelines.trying.models import serving, write_model, write_report
from tests.waiting import wait_for
from unetpp import UserError
from unetpp.network.masks import FOR_INSTANCES


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("a project")
    write_model(folder)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def server(project):
    with serving(project / "models/train") as opened:
        yield opened


def ask(server, path: str, body: bytes | None = None, method: str | None = None, **headers) -> tuple[int, bytes]:
    """Status and content of a request below the page's own address."""
    address = path if path.startswith("http") else server.address + path
    request = urllib.request.Request(address, body, {k.replace("_", "-"): v for k, v in headers.items()}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def drop(server, path: Path) -> dict:
    status, content = ask(server, f"images?name={path.name}", path.read_bytes(), "POST")
    return json.loads(content) | {"status": status}


def noise(path: Path, size=(50, 70), channels=3) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, channels), np.uint8)
    Image.fromarray(pixels.squeeze()).save(path)
    return path


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_classes": 11},
        {"num_classes": 30, "background": False},
        {"num_classes": 3, "multilabel": True},
        {"targets": FOR_INSTANCES},
    ],
    ids=["foreground", "11 classes", "30 classes", "labels", "objects"],
)
def test_every_depths_masks_are_those_of_predict_byte_for_byte(tmp_path, config):
    model = write_model(tmp_path, **config)
    with serving(model) as server:
        image = drop(server, noise(tmp_path / "a.png"))
        assert (image["name"], image["width"], image["height"]) == ("a.png", 70, 50)
        for depth in (2, 1):
            found = json.loads(ask(server, f"images/{image['id']}/L{depth}")[1])
            assert found["engine"] == "torch"
            assert found["passes"] >= 1
            assert found["ms"] > 0
            out = tmp_path / f"L{depth}"
            predict([str(tmp_path / "a.png")], str(model), depth, out)
            labels = server.subject.about.classes if "multilabel" in config else ["."]
            for index, label in enumerate(labels):
                file = out / label / "a.png"
                assert ask(server, f"images/{image['id']}/L{depth}/{index}.png") == (200, file.read_bytes())
            *masks, drawn = found["files"]
            assert len(masks) == len(labels)
            assert drawn["name"] == f"a-L{depth}-overlay.png"
            status, content = ask(server, f"images/{image['id']}/L{depth}/{len(masks)}.png")
            assert (status, content[:4]) == (200, b"\x89PNG")
            assert (found["differs"] > 0) == (depth == 1)  # from L2, the deepest
            written = tifffile.imread(out / "labels/a.tif").max() if "targets" in config else None
            assert found["objects"] == written


def test_a_large_image_is_shown_reduced_and_saved_whole(tmp_path, server, monkeypatch):
    monkeypatch.setattr("pipelines.trying.tried.SHOWN_PX", 32)
    image = drop(server, noise(tmp_path / "a.png"))
    assert (image["width"], image["height"], image["step"]) == (70, 50, 3)
    found = json.loads(ask(server, f"images/{image['id']}/L1")[1])
    assert found["files"][0] == {"label": "mask", "name": "a-L1.png"}
    saved = ask(server, f"images/{image['id']}/L1/0.png")[1]
    assert np.array(Image.open(io.BytesIO(saved))).shape == (50, 70)


def test_an_example_comes_with_its_true_outline(server):
    image = json.loads(ask(server, "examples/1", b"", "POST")[1])
    assert image["name"] == "image 1"
    assert image["outline"].startswith("M")
    assert ask(server, "examples/3", b"", "POST")[0] == 404


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("", {"Host": "rebound.example:{port}"}, 421),
        ("", {"Host": "127.0.0.1"}, 421),  # another port's
        ("", {"Host": "localhost:{port}"}, 200),
        ("http://127.0.0.1:{port}/", {}, 403),
        ("http://127.0.0.1:{port}/wrong/", {}, 403),
        ("http://127.0.0.1:{port}/wrong/images?name=a.png", {}, 403),
        ("images?name=a.png", {"Origin": "http://other.example"}, 403),
        ("images?name=a.png", {"Origin": "null"}, 403),
        ("../../etc/passwd", {}, 404),
    ],
)
def test_who_does_not_come_from_the_page_is_refused(server, path, headers, status):
    headers = {name: value.format(port=server.port) for name, value in headers.items()}
    body = b"\x89PNG" if "images" in path else None
    held = len(server.held)
    found, content = ask(server, path.format(port=server.port), body, **headers)
    assert found == status
    assert len(server.held) == held
    if status != 200:
        assert server.token.encode() not in content


def test_the_page_is_one_file_that_nobody_may_frame_and_no_secret_leaves_it(server):
    with urllib.request.urlopen(server.address, timeout=60) as answer:
        page, headers = answer.read().decode(), answer.headers
    assert headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert (headers["Referrer-Policy"], headers["Cache-Control"]) == ("no-referrer", "no-store")
    assert "Access-Control-Allow-Origin" not in headers
    policy = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)[0]
    assert re.fullmatch(
        r"default-src 'none'; script-src 'sha256-\S+'; connect-src 'self'; style-src 'unsafe-inline'; img-src data:; "
        r"base-uri 'none'; form-action 'none'",
        policy,
    )
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "L1 is &lt;recommended&gt;" in page


def test_what_cannot_be_tried_is_said_in_one_line_that_names_the_file(tmp_path, server, monkeypatch):
    (tmp_path / "words.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    noise(tmp_path / "four.tif", channels=4)
    (tmp_path / "cut.png").write_bytes(noise(tmp_path / "whole.png").read_bytes()[:900])
    for name in ("words.png", "empty.png", "cut.png"):
        found = drop(server, tmp_path / name)
        assert found["status"] == 400
        assert found["error"].startswith(f"{name}: found ")
        assert "\n" not in found["error"]
        assert "unetpp-tmp" not in found["error"]
    monkeypatch.setattr(server, "limits", stage.Limits(max_pixels=100, max_file_mib=1))
    found = drop(server, tmp_path / "whole.png")
    assert found["error"] == (
        "whole.png: found too many pixels (70x50 px); expected at most 100: `unetpp predict` takes larger images"
    )
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("POST", f"/{server.token}/images?name=a.png")
    connection.putheader("Content-Length", str(2**31))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["error"].startswith("a.png: found 2048 MiB; expected at most 1: ")
    connection.close()


def test_an_image_that_is_held_no_more_is_asked_for_again(tmp_path, server):
    first = drop(server, noise(tmp_path / "a.png"))
    for _ in range(stage.HELD):
        drop(server, tmp_path / "a.png")
    status, content = ask(server, f"images/{first['id']}/L1")
    assert status == 404
    assert "drop it again" in json.loads(content)["error"]


def test_the_depth_beside_is_the_recommended_one_of_this_very_model(tmp_path):
    model = write_model(tmp_path)
    subject = find_subject(str(model))
    assert (subject.beside, subject.role, subject.examples) == ("L2", "deepest", [])
    assert "No evaluation of this model was found" in subject.why
    write_report(tmp_path)
    subject = find_subject(str(model))
    assert (subject.beside, subject.role) == ("L1", "recommended")
    assert subject.why.startswith("L1 is <recommended>")
    assert [one.rank for one in subject.examples] == ["best", "median", "worst"]
    report = tmp_path / "reports/evaluate/report.json"
    report.write_text(report.read_text().replace('"recommended_depth": 1', '"recommended_depth": null'))
    assert find_subject(str(model)).role == "nearest"
    report.write_text(re.sub(r'"model_sha256": "\w+"', '"model_sha256": "0"', report.read_text()))
    assert find_subject(str(model)).role == "deepest"


def test_a_port_that_is_taken_is_said(server):
    with pytest.raises(UserError, match=rf"--port {server.port}: .*; use another"):
        stage.Server(server.subject, "", server.port)


@pytest.mark.slow
def test_ctrl_c_ends_the_command_with_a_line(project):
    command = [sys.executable, "-m", "pipelines.cli", "try", "models/train", "--no-browser"]
    log = project / "log.txt"
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=project, stdout=out, stderr=subprocess.STDOUT)
    wait_for(lambda: "http://127.0.0.1:" in log.read_text(), process, log)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    *_, last = log.read_text().splitlines()
    assert last == "ended; the page answers no more"
    assert "Traceback" not in log.read_text()
