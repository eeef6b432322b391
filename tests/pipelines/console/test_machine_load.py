"""How busy the machine was, sampled while something runs."""

import csv

import pytest

from pipelines.console import machine_load
from pipelines.console.machine_load import read_gpus, sampled
from pipelines.registry.run_log import read_system
from tests.waiting import wait_for

SMI = """#!/bin/sh
test "$2" = "--format=csv,noheader,nounits" || exit 3
echo '87, 1000, 4000, 310.50'
echo '3, 10, 4000, [N/A]'
"""


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """A stand-in for the driver's program, with its way of writing: this machine may have no GPU."""
    path = tmp_path / "bin/nvidia-smi"
    path.parent.mkdir()
    monkeypatch.setenv("PATH", str(path.parent), prepend=":")

    def write(text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    return write


@pytest.fixture
def taken(monkeypatch):
    """The rows that were taken so far."""
    read, rows = machine_load.read_machine, []
    monkeypatch.setattr(machine_load, "read_machine", lambda: rows.append(read()) or rows[-1])
    return rows


def test_rows_are_taken_over_time_and_read_by_register(tmp_path, taken):
    path = tmp_path / "reports/system.csv"
    with sampled(path, interval_s=0.02):
        wait_for(lambda: len(taken) >= 4)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 3
    times = [float(row["time"]) for row in rows]
    assert times == sorted(times)
    assert 0 < float(rows[0]["system_memory_usage_percentage"]) < 100
    metrics = read_system(path)
    assert {key for key, *_ in metrics} >= {"system/cpu_utilization_percentage", "system/disk_usage_megabytes"}
    assert [step for key, _, step, _ in metrics if key == "system/disk_usage_percentage"] == list(range(len(rows)))


def test_rows_of_a_run_that_failed_are_kept(tmp_path):
    with pytest.raises(KeyError), sampled(tmp_path / "system.csv"):
        raise KeyError("a bug")
    assert len((tmp_path / "system.csv").read_text().splitlines()) == 2


def test_long_run_has_no_more_rows_than_a_page_can_draw(tmp_path, monkeypatch, taken):
    monkeypatch.setattr(machine_load, "MAX_ROWS", 8)
    with sampled(tmp_path / "system.csv", interval_s=0.001):
        wait_for(lambda: len(taken) >= 20)
    assert 4 <= len((tmp_path / "system.csv").read_text().splitlines()) - 1 <= 8


def test_each_gpu_has_its_numbers_and_none_for_what_it_does_not_say(smi):
    smi(SMI)
    found = read_gpus()
    assert found["gpu_0_utilization_percentage"] == 87
    assert found["gpu_0_memory_usage_percentage"] == 25
    assert found["gpu_0_power_usage_watts"] == 310.5
    assert found["gpu_1_utilization_percentage"] == 3
    assert "gpu_1_power_usage_watts" not in found


def test_driver_that_fails_is_a_machine_without_gpus(smi):
    smi("#!/bin/sh\nexit 9\n")
    assert read_gpus() == {}
