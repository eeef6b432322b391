"""The disk that is full, however a library tells it."""

import errno
import sqlite3

import pytest

from pipelines.core.command import run_command
from pipelines.core.files import replacing
from pipelines.core.full_disk import check_space, disk_errors, full_disk
from unetpp.errors import UserError

FULL = {
    "by number": (OSError(errno.ENOSPC, "No space left on device"), "there"),
    "with its path": (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "/a/b"),
    "of a copy": (OSError(errno.EDQUOT, "Disk quota exceeded", "/tmp/a", None, "/b/c"), "/b/c"),
    "a limit": (OSError(errno.EFBIG, "File too large"), "there"),
    "Ray's": (RuntimeError("ray::trial() OSError: [Errno 28] Error writing bytes: No space left on device"), "there"),
    "SQLite's": (sqlite3.OperationalError("database or disk is full"), "there"),
    "of shared memory": (
        RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)"),
        "/dev/shm",
    ),
}


@pytest.mark.parametrize("kind", FULL)
def test_a_full_disk_is_told_with_its_path_whatever_error_it_comes_as(kind):
    error, place = FULL[kind]
    try:
        raise ValueError("the stage failed") from error
    except ValueError as wrapped:
        told = full_disk(wrapped, "there")
    assert str(told).startswith(f"{place}: the disk or quota is full")
    assert "\n" not in str(told)


def test_other_errors_are_not_taken_for_a_full_disk():
    for error in (OSError(errno.EACCES, "Permission denied", "/a"), ValueError("full"), UserError("the disk is full")):
        assert full_disk(error, "there") is None
        with pytest.raises(type(error)), disk_errors("there"):
            raise error


def test_what_stood_there_stays_and_the_path_is_named(tmp_path, capsys):
    path = tmp_path / "results.json"
    path.write_text("former")

    def write() -> None:
        with replacing(path) as partial, open("/dev/full", "w") as full:
            partial.write_text("half")
            full.write("half")

    with pytest.raises(SystemExit) as ended:
        run_command(write)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: the disk or quota is full")
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_needed_is_told_where_asked_and_refused_where_it_is_not_there(tmp_path, capsys):
    check_space(tmp_path / "not there yet", 3 * 2**20, "ingest")
    assert capsys.readouterr().out.startswith(f"ingest: about 3 MiB are needed in {tmp_path / 'not there yet'}, ")
    with pytest.raises(UserError, match=r"1,073,741,824 MiB are needed and [\d,]+ MiB are free"):
        check_space(tmp_path, 2**50)
