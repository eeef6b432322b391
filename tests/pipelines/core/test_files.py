"""Outputs take the place of nothing but the pipeline's own, and what killed processes left goes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.core import temporary_folders
from pipelines.core.files import replacing
from pipelines.core.outputs import MARKER, check_outputs
from pipelines.core.temporary_folders import kept_folder, scratch
from unetpp.errors import UserError


def write_folder(out: Path, *names: str) -> None:
    with replacing(out) as partial:
        for name in names:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_text(f"ours, {name}")


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MARKER
    }


def test_a_folder_of_ours_is_replaced_and_one_with_another_file_in_it_is_not(tmp_path):
    out = tmp_path / "out"
    for names in (("a", "L1/b"), ("a", "c")):
        check_outputs([out])
        write_folder(out, *names)
        assert set(contents(out)) == set(names)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out/notes\.txt: already exists, .* move them away$"):
        check_outputs([out])
    (out / "notes.txt").unlink()
    (out / "a").write_text("corrected by hand")
    with pytest.raises(UserError, match=r"out/a: already exists, .* or was changed since"):
        check_outputs([out])


def test_overwriting_keeps_what_has_another_name(tmp_path):
    out = tmp_path / "out"
    write_folder(out, "a", "L1/b", "L2/c")
    (out / "notes.txt").write_text("mine")
    (out / "L2/c").write_text("changed by hand")
    check_outputs([out], overwrite=True)
    write_folder(out, "a", "d")
    assert contents(out) == {"a": "ours, a", "d": "ours, d", "notes.txt": "mine", "L2/c": "changed by hand"}
    with pytest.raises(UserError, match=r"notes\.txt"):
        check_outputs([out], overwrite=False)


def test_a_folder_that_nobody_marked_is_not_ours(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(7):
        (tmp_path / f"photos/{number}.png").touch()
    with pytest.raises(UserError, match=r"photos/4\.png and more: already exists"):
        check_outputs([tmp_path / "photos"])
    (tmp_path / "empty").mkdir()
    check_outputs([tmp_path / "empty", tmp_path / "new"])


def test_a_file_is_replaced_where_it_is_as_we_wrote_it(tmp_path):
    out = tmp_path / "table.csv"
    for text in ("first", "second"):
        check_outputs(files=[out])
        with replacing(out) as partial:
            partial.write_text(text)
    out.write_text("by you")
    with pytest.raises(UserError, match=r"table\.csv: already exists, .* or use --overwrite"):
        check_outputs(files=[out], overwrite=False)
    check_outputs(files=[out], overwrite=True)
    with pytest.raises(UserError, match="found a folder; expected the name of a file"):
        check_outputs(files=[tmp_path], overwrite=True)
    with pytest.raises(UserError, match="found a file; expected a folder"):
        check_outputs([out], overwrite=True)
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(UserError, match="dangling: already exists"):
        check_outputs(files=[tmp_path / "dangling"])


@pytest.mark.parametrize("way", ["itself", "relative", "link", "hard link", "in a linked folder"])
def test_an_input_is_no_output_by_whatever_name(tmp_path, monkeypatch, way):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans/a.png").write_text("an image")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    if way == "link":
        Path("a.png").symlink_to("../scans/a.png")
    elif way == "hard link":
        os.link("../scans/a.png", "a.png")
    elif way == "in a linked folder":
        (tmp_path / "linked").symlink_to("scans")
    out = {
        "itself": tmp_path / "scans/a.png",
        "relative": Path("../scans/a.png"),
        "in a linked folder": "../linked/a.png",
    }
    with pytest.raises(UserError, match=r"this output is .*scans/a\.png, which is read"):
        check_outputs(files=[Path(out.get(way, "a.png"))], inputs=[tmp_path / "scans/a.png"], overwrite=True)


def test_outputs_hold_no_input_lie_in_none_and_are_not_one_another(tmp_path):
    raw, out = tmp_path / "data/raw", tmp_path / "out"
    write_folder(raw, "a")
    for folder, message in ((raw, "is"), (raw.parent, "holds"), (raw / "out", "lies in")):
        with pytest.raises(UserError, match=f"this output {message} .*raw, which is read"):
            check_outputs([folder], inputs=[raw], overwrite=True)
    check_outputs([raw / "out"], inputs=[raw], within=True)
    for file in (out, out / "deep/split.csv"):
        with pytest.raises(UserError, match="another output too, or lies in one"):
            check_outputs([out], [file])


def test_a_linked_folder_stays_a_link(tmp_path):
    (tmp_path / "large disk/out").mkdir(parents=True)
    (tmp_path / "out").symlink_to("large disk/out")
    for _ in range(2):
        check_outputs([tmp_path / "out"])
        write_folder(tmp_path / "out", "a")
    assert (tmp_path / "out").is_symlink()
    assert set(contents(tmp_path / "large disk/out")) == {"a"}


def test_names_of_250_bytes_are_written(tmp_path):
    with replacing(tmp_path / ("ä" * 120 + ".png")) as partial:
        partial.write_text("x")
    assert [len(os.fsencode(path.name)) for path in tmp_path.iterdir()] == [244]


def test_what_killed_processes_left_goes_and_what_a_living_one_writes_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(temporary_folders.tempfile, "tempdir", str(tmp_path))
    code = (
        "import multiprocessing.util, sys, time\n"
        "from pathlib import Path\n"
        "from pipelines.core.command import run_command\n"
        "from pipelines.core.files import replacing\n"
        "from pipelines.core.temporary_folders import scratch\n"
        "def main():\n"
        "    with replacing(Path(sys.argv[1])) as partial, scratch() as folder:\n"
        "        partial.mkdir()\n"
        "        (partial / 'half').touch()\n"
        "        multiprocessing.util.get_temp_dir()\n"  # where the sockets of workers lie
        "        print('writes', flush=True)\n"
        "        time.sleep(600)\n"
        "run_command(main)\n"
    )
    command, environment = [sys.executable, "-c", code, tmp_path / "out"], os.environ | {"TMPDIR": str(tmp_path)}
    writing = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(2)]
    try:
        for process in writing:
            assert process.stdout is not None
            process.stdout.readline()
        assert len(list(tmp_path.iterdir())) == 6
        old = tmp_path / f".out.partial-{writing[0].pid}"  # of a version before, whose process lives
        old.mkdir()
        os.kill(writing[1].pid, signal.SIGKILL)
        writing[1].wait()
        (tmp_path / f".out.partial-{writing[1].pid}").mkdir()
        (tmp_path / "unetpp-tmp-mine").mkdir()  # has no lock: nobody knows whose it is
        check_outputs([tmp_path / "out"])
        with scratch():
            pass
        left = {path.name for path in tmp_path.iterdir()}
        assert len(left) == 5
        assert {old.name, "unetpp-tmp-mine"} < left
    finally:
        for process in writing:
            process.kill()
            process.communicate()
    check_outputs([tmp_path / "out"])
    with scratch():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["unetpp-tmp-mine"]


def test_a_page_outlives_its_command_for_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(temporary_folders.tempfile, "tempdir", str(tmp_path))
    first, second = kept_folder(), kept_folder()
    assert first.is_dir()
    os.utime(first.parent, (0, time.time() - 25 * 3600))
    kept_folder()
    assert not first.exists()
    assert second.is_dir()


def test_an_error_in_the_block_is_the_one_that_is_raised(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "out"):
        (tmp_path / "nowhere").read_text()
    assert not list(tmp_path.iterdir())
