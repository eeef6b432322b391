"""The search stage with real Ray Tune trials."""

import csv

import pytest
import yaml

from pipelines.search import choose

ARGUMENTS = ("--runs", "runs", "--out", "architecture.yaml", "--trials", "trials.csv")


def results(project) -> tuple[list[int], list[dict]]:
    with open(project.folder / "trials.csv") as file:
        rows = list(csv.DictReader(file))
    return yaml.safe_load((project.folder / "architecture.yaml").read_text())["widths"], rows


def test_one_candidate_needs_no_trial_and_no_ray(project, prepared):
    printed = project.run("search", "--prepared", str(prepared), *ARGUMENTS)
    widths, rows = results(project)
    assert widths == [4, 6, 8]
    assert "no trial" in rows[0]["status"]
    assert "the only candidate" in printed
    assert not (project.folder / "runs").exists()


def test_best_candidate_wins_and_of_equals_the_smaller():
    rows = [
        {"widths": [8, 16], "status": "done", "best_iou": 0.8, "parameters": 900},
        {"widths": [4, 8], "status": "done", "best_iou": 0.8, "parameters": 300},
        {"widths": [2, 4], "status": "done", "best_iou": 0.7, "parameters": 100},
        {"widths": [1, 2], "status": "failed: killed", "parameters": 10},
    ]
    assert choose(rows)["widths"] == [4, 8]


@pytest.mark.slow
def test_trials_of_one_process_each_choose_by_accuracy(project, prepared):
    project.set({"search": {"widths": [[4, 6], [4, 6, 8], [4, 6]], "epochs": 3, "max_concurrent": 2}})
    printed = project.run("search", "--prepared", str(prepared), *ARGUMENTS)
    widths, rows = results(project)
    assert [row["widths"] for row in rows] == ["4 6", "4 6 8"], printed  # the same candidate twice is one
    assert all(row["status"] == "done" for row in rows)
    assert rows[0]["val_iou_L2"] == "" != rows[1]["val_iou_L2"]
    best = max(rows, key=lambda row: float(row["best_iou"]))
    assert widths == [int(width) for width in best["widths"].split()]
    # The same command again restores the trials and does not run them.
    project.run("search", "--prepared", str(prepared), *ARGUMENTS)
    assert results(project) == (widths, rows)


@pytest.mark.slow
def test_trials_of_several_processes_are_ray_train_runs(project, prepared):
    project.set({"search": {"widths": [[4, 6], [4, 6, 8]], "num_workers": 2, "max_concurrent": 1}})
    printed = project.run("search", "--prepared", str(prepared), *ARGUMENTS)
    _, rows = results(project)
    assert [row["status"] for row in rows] == ["done", "done"], printed
    assert all(float(row["best_iou"]) >= 0 for row in rows)


@pytest.mark.slow
def test_more_trials_at_once_than_cores_are_refused_with_the_numbers(project, prepared):
    project.set({"search": {"widths": [[4, 6], [4, 6, 8]], "cpus_per_worker": 500, "max_concurrent": 2}})
    printed = project.run("search", "--prepared", str(prepared), *ARGUMENTS, expect=2)
    assert "need 1000 cores" in printed
    assert "search.max_concurrent" in printed
    assert "Traceback" not in printed
