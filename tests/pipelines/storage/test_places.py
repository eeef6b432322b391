"""A folder and a bucket over real HTTP: the same laws for both."""

import errno
import hashlib
import pickle

import pytest

from pipelines.storage import places
from pipelines.storage.places import Folder
from tests.servers import s3_error
from unetpp.errors import UserError


def test_files_are_written_replaced_found_and_deleted(place, tmp_path):
    assert list(place.list()) == []
    assert place.size("a/b") is place.read("a/b") is place.fetch("a/b", tmp_path / "here") is None
    (tmp_path / "file").write_bytes(b"of a file")
    place.write("a/b", b"once")
    place.write("a/b", memoryview(b"twice"))
    place.write("c", tmp_path / "file")
    again = pickle.loads(pickle.dumps(place))  # as it travels to a worker
    assert again.location == place.location
    assert {name: again.read(name) for name in again.list()} == {"a/b": b"twice", "c": b"of a file"}
    assert (again.size("a/b"), again.name("c")) == (5, f"{place.location}/c")
    assert again.fetch("c", tmp_path / "here") == hashlib.sha256(b"of a file").hexdigest()
    assert (tmp_path / "here").read_bytes() == b"of a file"
    for name in ("a/b", "a/b", "never there"):
        place.delete(name)
    assert list(place.list()) == ["c"]


def test_a_write_that_fails_leaves_what_was_there_and_nothing_half(tmp_path, monkeypatch):
    place = Folder(tmp_path)
    place.write("a", b"old")

    def fail(_file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(places, "_to_disk", fail)
    for name in ("a", "folder/b"):
        with pytest.raises(UserError, match="the disk or quota is full"):
            place.write(name, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert place.read("a") == b"old"


def test_a_folder_that_is_none_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for use in (lambda place: place.write("a", b""), lambda place: place.read("a"), lambda place: place.size("a")):
        with pytest.raises(UserError, match=r"file: cannot be .*(Not a dir|File exists).*correct cluster\.storage"):
            use(Folder(tmp_path / "file"))


@pytest.mark.parametrize(
    ("method", "use", "message"),
    [
        ("PUT", lambda place: place.write("new", b"x"), r"/new: cannot be written: access denied \(403.*s3:PutObject"),
        ("DELETE", lambda place: place.delete("new"), r"/new: cannot be removed: access denied \(403.*s3:DeleteObject"),
    ],
)
def test_a_store_that_denies_says_which_permission_it_wants(s3_place, bucket, method, use, message):
    denied = s3_error(403, "AccessDenied")
    bucket.fault = lambda request, answer: denied if request.method == method else answer
    with pytest.raises(UserError, match=message):
        use(s3_place)
