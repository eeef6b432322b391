"""What was predicted is not predicted again, whatever ended the command."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipelines import INTERRUPTED
from pipelines.predict import predict
from pipelines.prediction import flow
from pipelines.prediction.addresses import item_of
from pipelines.prediction.outputs import Outputs
from tests.pipelines.prediction.models import save, write
from unetpp.errors import UserError

# The command, which sends itself a signal when the third image is written down.
RUN = """
import os, sys
from pipelines import cli
from pipelines.prediction.record import Record
number, real, left = int(sys.argv[1]), Record.add, [3]
def add(*arguments):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), number)
    return real(*arguments)
Record.add = add
sys.argv[1:] = sys.argv[2:]
cli.main()
"""


@pytest.fixture
def decoded(monkeypatch):
    """The names of the images that are decoded."""
    names, decode = [], flow.decode_image

    def noting(path, *arguments, **named):
        names.append(path.stem)
        return decode(path, *arguments, **named)

    monkeypatch.setattr(flow, "decode_image", noting)
    return names


def test_only_what_is_new_or_changed_or_asked_for_otherwise_is_predicted_again(tmp_path, decoded, capsys):
    model, out = save(tmp_path / "model"), tmp_path / "out"
    for name in "abc":
        write(tmp_path / f"in/{name}.png")

    def run(**named) -> str:
        decoded.clear()
        predict([str(tmp_path / "in")], str(model), None, out, **named)
        return "".join(sorted(decoded))

    assert run() == "abc"
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert run() == ""
    assert "wrote 3 masks" in (said := capsys.readouterr().out)
    assert "3 of them before" in said
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")} == before
    write(tmp_path / "in/b.png", (40, 50))
    write(tmp_path / "in/d.png")
    (out / "c.png").unlink()
    assert run() == "bcd"
    assert np.array(Image.open(out / "b.png")).shape == (40, 50)
    assert (run(tta="flips"), run(tta="flips"), run()) == ("abcd", "", "abcd")
    assert run(overwrite=True) == "abcd"
    measured = Outputs(("mask", "measurements"))
    assert (run(outputs=measured), run(outputs=measured)) == ("abcd", "")
    with (out / ".unetpp-predicted").open("a") as record:
        record.write('\n["torn')
    assert run(outputs=measured) == ""


def test_masks_that_an_interrupted_command_replaced_do_not_pass_for_those_of_the_command_before(
    tmp_path, decoded, monkeypatch
):
    model, out = save(tmp_path / "model"), tmp_path / "out"
    for name in "ab":
        write(tmp_path / f"in/{name}.png")
    predict([str(tmp_path / "in")], str(model), None, out)

    def interrupted(results, *_):
        next(results)  # its mask is written, and not yet recorded
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.predict.watched", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict([str(tmp_path / "in")], str(model), None, out, tta="flips")
    decoded.clear()
    predict([str(tmp_path / "in")], str(model), None, out)
    assert sorted(decoded) == ["a", "b"]


def test_names_of_any_bytes_are_measured_and_resumed(tmp_path, decoded):
    model, out = save(tmp_path / "model"), tmp_path / "out"
    for name in ("line\nbreak", "carriage\rreturn", os.fsdecode(b"latin-\xe9")):
        write(tmp_path / f"in/{name}.png")
    for number in (3, 0):
        decoded.clear()
        predict([str(tmp_path / "in")], str(model), None, out, outputs=Outputs(("mask", "measurements", "mask")))
        assert len(decoded) == number
    assert r"latin-\udce9" in (out / "counts.csv").read_text(encoding="utf-8")


def test_a_full_disk_ends_the_command_for_large_images_too(tmp_path, monkeypatch):
    model = save(tmp_path / "model")
    for name in "ab":
        write(tmp_path / f"in/{name}.png", (30, 1100))

    def full(*_):
        raise UserError("out/a.png: the disk is full")

    monkeypatch.setattr(flow, "write_outputs", full)
    with pytest.raises(UserError, match=r"^out/a\.png: the disk is full$"):
        predict([str(tmp_path / "in")], str(model), None, tmp_path / "out")


def test_a_file_that_was_moved_here_with_an_old_time_is_new(tmp_path):
    write(tmp_path / "a.png")
    began = (tmp_path / "a.png").stat().st_ctime
    os.utime(tmp_path / "a.png", (1, 1))
    assert item_of(tmp_path / "a.png").modified >= began


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_command_leaves_whole_files_and_the_same_command_does_the_rest(tmp_path, number, decoded):
    model, out = save(tmp_path / "model"), tmp_path / "out"
    names = [f"{index:02}" for index in range(70)]  # of two sizes, so that batches wait
    images = [write(tmp_path / f"in/{name}.png", (128, 128 + int(name) % 2)) for name in names]
    command = [sys.executable, "-c", RUN, str(int(number)), "predict", "in", "--model", str(model), "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=300)
    assert done.returncode == (130 if number == signal.SIGINT else -number), done.stderr
    assert number == signal.SIGKILL or done.stderr.strip().endswith(INTERRUPTED)
    there = {path.stem for path in out.glob("*.png")}
    assert 2 <= len(there) < len(names)
    for path in out.glob("*.png"):
        assert np.array(Image.open(path)).any(), path  # whole
    predict([str(tmp_path / "in")], str(model), None, out)
    assert len(decoded) <= len(names) - 2
    assert {path.stem for path in out.glob("*.png")} == set(names)
    assert not list(out.glob("*partial*"))
    assert np.array_equal(np.array(Image.open(out / f"{names[-1]}.png")), images[-1])
