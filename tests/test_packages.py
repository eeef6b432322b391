"""The packages of requirements.lock: each by its hash, and of a licence that lets anyone use this project."""

import re
import subprocess
import sys
from importlib.metadata import PackageMetadata, metadata
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

BLOCKS = re.split(r"\n(?=\S)", (REPOSITORY / "requirements.lock").read_text().strip())
PINS = {name: version for name, version in (block.split()[0].split("==") for block in BLOCKS)}

# Permissive, or copyleft of single files (MPL), of which none is changed here. As SPDX says it, or as packages do.
ALLOWED = re.compile(
    r"(0BSD|Apache.*|.*BSD.*|BSL-1\.0|CC0-1\.0|CNRI-Python|(The )?MIT.*|MPL-2\.0|Mozilla.*MPL 2\.0\)|PSF-2\.0|ZPL-2\.1|"
    r"Zlib|Zope Public License|Python Software Foundation License|Unlicense|ISC.*)",
    re.IGNORECASE,
)
EXCEPTIONS = {
    "asyncssh": "EPL-2.0 or GPL: the EPL holds; DVC brings it for remotes by SSH, and nothing of it is changed",
    "grandalf": "GPLv2 or EPLv1: the EPL holds; DVC draws `dvc dag` by it",
    "huey": "MIT, by its LICENSE file; its metadata say nothing",
    "psycopg2-binary": "LGPL with exceptions: used as a library, unchanged, for stores in PostgreSQL (extra `stores`)",
    "pygit2": "GPLv2 with a linking exception, which lets any program use it; DVC brings and imports it",
    "skops": "MIT, by its LICENSE file; its metadata say nothing; MLflow brings it",
}


def licences(of: PackageMetadata) -> list[str]:
    """What a package says of its licence; all of it has to be allowed."""
    if expression := of.get("License-Expression"):
        return [_chosen(part) for part in re.split(r"\s+AND\s+(?![^(]*\))", expression)]
    classifiers = [one.split(" :: ")[-1] for one in of.get_all("Classifier") or [] if one.startswith("License :: ")]
    stated = [one for one in classifiers if one != "OSI Approved"]
    first = (of.get("License") or "").strip().splitlines()[:1]
    return stated or [_chosen(part) for line in first for part in line.split(" AND ")] or ["nothing"]


def _chosen(part: str) -> str:
    """The alternative of `A OR B` that is allowed, where one is."""
    each = [one.strip() for one in part.strip("() ").split(" OR ")]
    return next((one for one in each if ALLOWED.fullmatch(one)), part)


def test_every_licence_is_allowed_or_an_exception_with_its_reason():
    refused = {}
    for name in PINS:
        wrong = [one for one in licences(metadata(name)) if not ALLOWED.fullmatch(one)]
        if wrong and name not in EXCEPTIONS:
            refused[name] = wrong
    assert refused == {}, "permissive ones are looked for first; else an entry in EXCEPTIONS says why it may be used"
    assert EXCEPTIONS.keys() <= PINS.keys()
    documented = (REPOSITORY / "docs/security.md").read_text()
    assert [name for name in EXCEPTIONS if f"`{name}`" not in documented] == []


@pytest.mark.parametrize("licence", ["GPL-3.0-or-later", "AGPL-3.0", "LGPL-2.1", "MIT AND GPL-2.0", "Proprietary"])
def test_what_is_not_permissive_is_found(licence):
    for key in ("License-Expression", "License"):
        of = metadata("numpy")
        for old in ("License-Expression", "License", "Classifier"):
            del of[old]  # pyright: ignore[reportIndexIssue]
        of[key] = licence  # pyright: ignore[reportIndexIssue]
        assert not all(ALLOWED.fullmatch(one) for one in licences(of))


def test_every_package_but_torch_is_pinned_by_its_hashes():
    without = [block.split()[0] for block in BLOCKS if not re.search(r"--hash=sha256:[0-9a-f]{64}$", block)]
    assert without == [f"torch=={PINS['torch']}"]  # its wheels differ by machine: `make lock`


@pytest.mark.slow
def test_a_package_of_another_hash_is_not_installed(tmp_path):
    uv, (block,) = Path(sys.executable).with_name("uv"), [one for one in BLOCKS if one.startswith("zipp==")]
    for lock, code in ((block, 0), (re.sub(r"sha256:\w+", "sha256:" + 64 * "0", block), 1)):
        (tmp_path / "lock").write_text(lock)
        command = [uv, "pip", "install", "--no-deps", "--target", tmp_path / str(code), "-r", tmp_path / "lock"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert ("Hash mismatch" in done.stderr) == bool(code)
