"""What DVC makes of the pipeline's plots and experiments: a page without a network, and a table of what differs."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.core.files import write_json
from pipelines.core.tables import write_rows
from pipelines.evaluation.scores import reliability_rows
from tests.clones import git
from tests.pipelines.pages.reports import whole

pytestmark = pytest.mark.slow


def dvc(folder: Path, *arguments: str) -> str:
    """A command of DVC there; what it prints."""
    command = [sys.executable, "-m", "dvc", *arguments]
    environment = os.environ | {"COLUMNS": "400", "DVC_SITE_CACHE_DIR": str(folder.parent / "site")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def project(repository, tmp_path) -> Path:
    """The pipeline's dvc.yaml, params.yaml and .dvc in a repository of their own, as yet without results."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("dvc.yaml", "params.yaml", ".gitignore"):
        shutil.copy(repository / name, folder / name)
    ignored = shutil.ignore_patterns("cache", "tmp", "*.local")
    shutil.copytree(repository / ".dvc", folder / ".dvc", ignore=ignored)
    git(folder, "init", "-q")
    return folder


def write_plots(project: Path) -> None:
    evaluate = whole(("L1", "L2"))
    depths = [{"depth": name} | row for name, row in evaluate["depths"].items()]
    curves = [
        {"depth": f"L{depth}", "epoch": epoch, "val_iou": 0.1 * epoch + 0.01 * depth, "trial": 1}
        for depth in (1, 2)
        for epoch in (1, 2, 3)
    ]
    point = {"trial": 1, "widths": "4 8", "status": "done", "on_front": 1, "chosen": 1}
    points = [point | {"depth": f"L{depth}", "macs": 100 * depth, "val_iou": 0.3 + 0.1 * depth} for depth in (1, 2)]
    tables = {
        "train/curves": curves,
        "evaluate/depths": depths,
        "evaluate/reliability": reliability_rows(evaluate),
        "search/curves": curves,
        "search/search": points,
    }
    for name, rows in tables.items():
        write_rows(project / f"reports/{name}.csv", list(rows[0]), rows)


@pytest.mark.browser
def test_plots_are_drawn_without_a_network(project, browser):
    write_plots(project)
    dvc(project, "plots", "show")
    plots = yaml.safe_load((project / "dvc.yaml").read_text())["plots"]
    for width in (390, 1280):
        browser.open(project / "dvc_plots/index.html", width)
        assert browser.errors == []  # among them each address that it asks for
        assert browser.evaluate("document.querySelectorAll('main canvas, main svg.marks').length") == len(plots)
        assert browser.overflowing() == []
    assert "editor" not in browser.evaluate("document.querySelector('main').innerText").lower()


def test_experiments_side_by_side_are_a_few_metrics_and_the_params_that_differ(project):
    for name, iou, rate in (("main", 0.5, "1.0e-3"), ("other", 0.6, "2.0e-3")):
        git(project, "checkout", "-q", "-b", name)
        params = yaml.safe_load((project / "params.yaml").read_text())
        params["train"]["learning_rate"] = float(rate)
        (project / "params.yaml").write_text(yaml.safe_dump(params))
        row = {key: iou for key in ("iou_image", "iou_image_low", "latency_ms", "peak_memory_mib")}
        write_json(project / "reports/evaluate/metrics.json", {"recommended_depth": 2} | row)
        write_json(project / "reports/train/metrics.json", {"epochs": 3, "best_epoch": 2, "val_iou": {"L1": iou}})
        write_json(project / "reports/data.json", {"num_images": {"all": 10}, "warnings": 0})
        git(project, "add", "-A")
        git(project, "commit", "-q", "-m", name)
    shown = dvc(project, "exp", "show", "--all-branches", "--only-changed", "--drop", ".*/", "--csv")
    head, *rows = csv.reader(shown.splitlines())
    kept = ["Experiment", "rev", "typ", "Created", "parent"]
    assert [column for column in head if column not in kept] == [
        "val_iou.L1",
        "iou_image",
        "iou_image_low",
        "latency_ms",
        "peak_memory_mib",
        "train.learning_rate",
    ]
    assert {row[head.index("train.learning_rate")] for row in rows} == {"0.001", "0.002"}
