"""What is sent to a cluster and comes back: a stage's working directory, and its results, sealed by their hash.

The code, params.yaml and the small files that the stage reads are sent, not its data. On the cluster the job runs
this file: it runs the stage, and then uploads its outputs to `cluster.storage`.
"""

import hashlib
import json
import os
import runpy
import shutil
import sys
import tarfile
from importlib import metadata
from pathlib import Path

from pipelines.core.command import run_command
from pipelines.core.files import replacing, write_json
from pipelines.core.params import Params
from pipelines.core.sections.ingest import S3
from pipelines.core.temporary_folders import scratch
from pipelines.storage.places import Place, open_place
from unetpp.errors import UserError
from unetpp.files import check_sha256, parse_json, read_json, sha256

ROOT = Path(__file__).parents[2]
JOB = "job.json"
KEY = "key"  # the file with the name under which a job's results are expected
# The inputs and outputs of a stage, by its options; the third kind is `runs`, of which a job keeps nothing: its
# checkpoints are in the storage.
STAGES = {
    "search": (("prepared", "init"), ("out", "reports")),
    "train": (("prepared", "architecture"), ("out", "reports")),
}
# Sent from an input folder; the data themselves are in the storage.
CARRIED = (".json", ".csv", ".yaml", ".safetensors")
# These packages determine the numbers of a training run, so they must be the same there as here.
PINNED = ("torch", "numpy", "ray", "albumentations", "opencv-python-headless", "pyarrow", "pydantic")


def outputs_of(stage: str, arguments: dict[str, Path]) -> dict[str, Path]:
    return {name: arguments[name] for name in STAGES[stage][1]}


def pack(package: Path, stage: str, params: Params, arguments: dict[str, Path]) -> str:
    """Make the working directory of a job: code, params.yaml, inputs without their data, and the command.

    Returns:
        the job's key, a hash of all this: the same key means the same result.
    """
    inputs, outputs = STAGES[stage]
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("unetpp", "pipelines"):
        shutil.copytree(ROOT / name, package / name, ignore=ignore)
    shutil.copy("params.yaml", package)
    paths: dict[str, str] = {}
    for name, path in arguments.items():
        if name in outputs:
            paths[name] = f"outputs/{name}/{path.name}"
        elif name in inputs:
            paths[name] = f"inputs/{name}/{path.name}"
            target = package / paths[name]
            target.parent.mkdir(parents=True)
            if path.is_dir():
                target.mkdir()
                for file in sorted(path.iterdir()):
                    if file.suffix in CARRIED:
                        shutil.copy(file, target)
            elif path.exists():
                shutil.copy(path, target)
                for weights in path.parent.glob("*.pt"):  # initial weights of train
                    shutil.copy(weights, target.parent)
        else:
            paths[name] = path.name
    write_json(
        package / JOB,
        {
            "stage": stage,
            "arguments": paths,
            "outputs": list(outputs),
            "storage": params.cluster.storage,
            "s3": params.ingest.s3.model_dump(mode="json"),
            "pinned": {name: metadata.version(name).split("+")[0] for name in PINNED},
        },
    )
    key = f"unetpp-{stage}-{_digest(package)}"
    (package / KEY).write_text(key)
    return key


def _digest(folder: Path) -> str:
    """A hash of names and bytes of all files, so that another job is never taken for this one."""
    found = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            found.update(f"{file.relative_to(folder)} {sha256(file)}\n".encode())
    return found.hexdigest()[:16]


def store(storage: Place, key: str, outputs: dict[str, Path]) -> None:
    """Upload outputs to the storage as one archive, and last a file that seals it."""
    with scratch() as folder:
        archive = folder / "outputs.tar"
        with tarfile.open(archive, "w") as tar:
            for name, path in outputs.items():
                tar.add(path, arcname=name)
        storage.write(f"{key}.tar", archive)
        seal = {"sha256": sha256(archive), "size": archive.stat().st_size}
        storage.write(f"{key}.json", json.dumps(seal).encode())


def fetch(storage: Place, key: str, outputs: dict[str, Path]) -> None:
    """Fetch what `store` uploaded, verify it, and put every output in its place.

    Raises:
        UserError: it is missing, or its bytes are not those that the job wrote.
    """
    name, seal = f"{key}.tar", storage.read(f"{key}.json")
    with scratch() as folder:
        archive = folder / "outputs.tar"
        found = storage.fetch(name, archive)
        if seal is None or found is None:
            raise UserError(
                f"{storage.name(name)}: no results of the job there; expected what it writes before it succeeds: is "
                "cluster.storage the same place here and on the cluster?"
            )
        advice = "the job wrote other bytes: remove it there and rerun the command"
        check_sha256(storage.name(name), found, parse_json(seal, f"{key}.json", advice, ("sha256",))["sha256"], advice)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        for output, path in outputs.items():
            _place(folder / output, path)
    print(f"fetched and verified: {', '.join(str(path) for path in outputs.values())}", flush=True)


def _place(found: Path, path: Path) -> None:
    """File by file: the folder may contain outputs of other stages."""
    files = [file for file in sorted(found.rglob("*")) if file.is_file()] if found.is_dir() else [found]
    for file in files:
        with replacing(path / file.relative_to(found) if found.is_dir() else path) as partial:
            shutil.copyfile(file, partial)


def check_versions(pinned: dict[str, str]) -> None:
    """Refuse an environment that differs from that of the machine that submitted the job.

    Raises:
        UserError: names each package with its version here and the one expected.
    """
    wrong = []
    for name, expected in pinned.items():
        try:
            found = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            found = "none"
        if found != expected:
            wrong.append(f"{name} {found} (expected {expected})")
    if wrong:
        raise UserError(
            f"{sys.executable} on the cluster: {', '.join(wrong)}; expected the versions of the machine that submitted "
            "the job: use the image of infra/Dockerfile, or set cluster.python to an interpreter that has them"
        )


def run_job() -> None:
    """Run the stage in the job's working directory, and then upload its outputs to the storage."""
    with scratch() as folder:
        # Ray removes a job's working directory when the stage leaves the cluster, before its results are uploaded.
        shutil.copytree(".", folder, dirs_exist_ok=True)
        sys.path[:] = [str(folder) if path in ("", os.getcwd()) else path for path in sys.path]
        os.chdir(folder)
        _run_stage()


def _run_stage() -> None:
    job = read_json(JOB, "send the job again", ("stage", "arguments", "outputs", "pinned"))
    check_versions(job["pinned"])
    arguments = job["arguments"]
    sys.argv = [job["stage"], *(part for name, path in arguments.items() for part in (f"--{name}", path))]
    try:
        runpy.run_module(f"pipelines.{job['stage']}", run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if error.code not in (None, 0):
            raise
    outputs = {name: Path(arguments[name]) for name in job["outputs"]}
    store(open_place(job["storage"], S3.model_validate(job["s3"])), Path(KEY).read_text(), outputs)


if __name__ == "__main__":
    run_command(run_job)
