"""The files of a folder that a user names: what links lead to is inside it, and what cannot be taken is named."""

import os
import socket

import pytest

from pipelines.storage import folder_walk
from pipelines.storage.folder_walk import walk
from tests.pipelines.storage.sources import PAIR, contents, run, write_folder
from unetpp.errors import UserError


def fifo(path):
    os.mkfifo(path)


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(path))  # short, as such names must be


def sparse(path):
    with path.open("wb") as file:
        file.truncate(folder_walk.MAX_FILE_BYTES + 1)


def link(target):
    return lambda path: path.symlink_to(target)


# What is made in the folder of images, and what is said of it.
REFUSED = {
    "a link to a file outside": (link("/etc/passwd"), r"found a link that leads out of \S+, to /etc/passwd; .*: name"),
    "a link to a device": (link("/dev/zero"), r"found a link that leads out of \S+, to /dev/zero"),
    "a link to a folder outside": (
        link("../../elsewhere"),
        r"found a link that leads out of \S+/set, to \S+/elsewhere; .*/elsewhere$",
    ),
    "a link to the folder above": (link(".."), r"found a link that leads back to \S+/set, a parent folder"),
    "a link to itself": (link("odd"), r"found a link to odd that cannot be read \(Too many levels"),
    "a link to nothing": (link("gone.png"), r"found a link to gone\.png that cannot be read \(No such file"),
    "a pipe": (fifo, "found a device, pipe or socket; expected plain files"),
    "a socket": (unix_socket, "found a device, pipe or socket; expected plain files"),
    "a file of more than any disk": (sparse, r"found \d+ bytes; expected at most \d+ per file"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_taken_is_named_and_never_opened_and_the_rest_is_found(tmp_path, monkeypatch, make, message):
    write_folder(tmp_path / "elsewhere", PAIR)
    root = write_folder(tmp_path / "set", PAIR)
    monkeypatch.chdir(tmp_path)
    make(root / "images/odd")
    files, [problem] = walk(root, "name {}")
    assert list(map(str, files)) == sorted(PAIR)
    assert problem.path == root / "images/odd"
    with pytest.raises(UserError, match=rf"images/odd: {message}"):
        raise problem


def test_a_folder_or_file_that_cannot_be_entered_is_named(tmp_path, monkeypatch):
    """By the system's answer: root, who may run this, enters all."""
    root = write_folder(tmp_path / "set", PAIR | {"images/day 2/b.png": b"x"})
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("day 2"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    files, [problem] = walk(root, "name {}")
    assert list(map(str, files)) == sorted(PAIR)
    assert str(problem).startswith(f"{root}/images/day 2: found a folder that cannot be read (Permission denied)")
    with pytest.raises(UserError, match=r"images/day 2: found a folder that cannot be read"):
        run("folder", root, tmp_path / "out")


def test_links_within_the_folder_are_what_they_lead_to_and_the_folder_itself_may_be_one(tmp_path):
    root = write_folder(tmp_path / "disk", {"stored/day 1/a.png": b"a", "masks/a.png": b"m", "masks/.hidden": b"h"})
    (root / "images").symlink_to("stored/day 1")
    (root / "masks/b.png").symlink_to(root / "masks/a.png")
    (root / "images/b.png").symlink_to("a.png")
    (tmp_path / "set").symlink_to(root)
    files, problems = walk(tmp_path / "set", "name {}")
    assert problems == []
    assert {str(name): size for name, size in files.items() if name.parts[0] != "stored"} == dict.fromkeys(
        ["images/a.png", "images/b.png", "masks/a.png", "masks/b.png"], 1
    )
    run("folder", tmp_path / "set", tmp_path / "out")
    assert contents(tmp_path / "out") == {
        f"{folder}/{name}.png": content for folder, content in (("images", b"a"), ("masks", b"m")) for name in "ab"
    }
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_a_link_to_another_disk_is_refused_with_the_param_that_allows_it(tmp_path):
    disk = write_folder(tmp_path / "disk", {"a.png": PAIR["images/a.png"]})
    root = write_folder(tmp_path / "set", {"masks/a.png": PAIR["masks/a.png"]})
    (root / "images").symlink_to(disk)
    with pytest.raises(UserError, match=rf"set/images: found a link .*, or name it in ingest\.links_to: \[{disk}\]$"):
        run("folder", root, tmp_path / "out")
    assert contents(tmp_path / "out") == {}
    run("folder", root, tmp_path / "out 2", links_to=(str(disk),))
    assert contents(tmp_path / "out 2") == PAIR
    (disk / "b.png").symlink_to("/etc/passwd")  # its own links may lead no further
    with pytest.raises(UserError, match=r"set/images/b\.png: found a link that leads out of \S+, to /etc/passwd"):
        run("folder", root, tmp_path / "out 3", links_to=(str(disk),))


def test_links_that_lead_to_each_other_end(tmp_path, monkeypatch):
    for number in range(12):
        (tmp_path / f"{number}").mkdir()
        for other in range(2):
            (tmp_path / f"{number}/{other}").symlink_to(f"../{(number + other + 1) % 12}")
    monkeypatch.setattr(folder_walk, "MAX_ENTRIES", 100)
    with pytest.raises(UserError, match=r"found more than 100 entries, up to .*; split it"):
        walk(tmp_path, "name {}")
