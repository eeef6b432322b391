"""`unetpp stage NAME` is the stage of that name, and folders of a user's own are no packages to its processes."""

import os
import signal
import sys

import pytest
import yaml

from pipelines import code
from pipelines.cli import main


def test_a_stage_runs_by_its_name_and_its_processes_look_for_no_package_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONSAFEPATH", "")  # which is undone at the end
    monkeypatch.setattr(sys, "argv", ["unetpp", "stage", "code", "--out", str(tmp_path / "code.yaml")])
    main()
    hashes = yaml.safe_load((tmp_path / "code.yaml").read_text())
    assert list(hashes) == list(code.STAGES)
    assert len(set(hashes.values())) == len(hashes)
    assert os.environ["PYTHONSAFEPATH"] == "1"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_stage_says_what_it_wants_by_the_name_that_called_it(monkeypatch, capsys):
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.setattr(sys, "argv", ["unetpp", "stage", "code"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "unetpp stage code: error: the following arguments are required: --out" in capsys.readouterr().err
