"""Laws of the house: layers, the lock, and silence."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from unetpp.offline import TELEMETRY_OFF

from .conftest import REPOSITORY

# Lowest first; a file imports only from rows above its own. Within a row, only what is listed in BESIDE.
LAYERS = (
    {"unetpp.offline", "unetpp.errors", "unetpp.masks", "unetpp"},
    {"unetpp.model", "unetpp.losses", "unetpp.metrics"},
    {
        "unetpp.pruning",
        "unetpp.inference",
        "unetpp.folding",
        "unetpp.export",
        "unetpp.graphs",
        "unetpp.quantisation",
        "unetpp.runtimes",
        "unetpp.signal_stack",
        "unetpp.verification",
        "unetpp.tiles",
        "unetpp.cost",
        "unetpp.boundaries",
        "unetpp.objects",
        "unetpp.calibration",
        "unetpp.images",
        "unetpp.pictures",
        "unetpp.tiff",
        "unetpp.crops",
        "unetpp.warp",
        "unetpp.data",
        "unetpp.augment",
        "unetpp.device_augment",
        "unetpp.loader",
        "unetpp.batch_norm",
        "unetpp.ema",
        "unetpp.memory",
        "unetpp.failures",
        "unetpp.step",
        "unetpp.loop",
        "unetpp.checkpoint",
    },
    {
        "pipelines",
        *(
            f"pipelines.{name}"
            for name in (
                "files",
                "commit",
                "stage",
                "sections",
                "params",
                "trees",
                "coco",
                "layouts",
                "labels",
                "processes",
                "synthetic",
                "groups",
                "duplicates",
                "splits",
                "salts",
                "spool",
                "archives",
                "storage",
                "downloads",
                "node_cache",
                "run_store",
                "web",
                "sources",
                "cluster",
                "jobs",
                "parcel",
                "settings",
                "rows",
                "progress",
                "feed",
                "live",
                "wrapping",
                "batches",
                "training",
                "alone",
                "peers",
                "stopping",
                "preemption",
                "worker",
                "space",
                "costs",
                "front",
                "trials",
                "probe",
                "searchers",
                "tuning",
                "search_page",
                "tracking",
                "seals",
                "served",
                "registry",
                "reload",
                "lineage",
                "reproduce",
                "system",
                "exclusive",
                "tracking",
                "runs",
                "registry",
                "compare",
                "evidence",
                "run_log",
                "promotion",
                "aliases",
                "page",
                "objects",
                "facts",
                "loading",
                "balance",
                "fingerprint",
                "advice",
                "findings",
                "data_report",
                "viewer",
                "report_charts",
                "report",
                "runtimes",
                "report_schema",
                "depth_table",
                "predictor",
                "quality",
                "scores",
                "picks",
                "intervals",
                "decision",
                "gates",
                "depth_costs",
                "cold_start",
                "compare_page",
                "evaluations",
                "card",
            )
        ),
    },
    {
        f"pipelines.{name}"
        for name in (
            "ingest",
            "prepare",
            "search",
            "train",
            "export",
            "evaluate",
            "register",
            "promote",
            "predict",
            "doctor",
            "summary",
            "cli",
        )
    },
)
BESIDE = {
    0,
    2,
    3,
}  # the stages and the network's own files never import each other; the command line does, late
HOMES = {  # each outside system has one home file, or the few that the file map names
    "albumentations": {"unetpp.augment"},
    "pyarrow": {"unetpp.data", "pipelines.storage"},
    "PIL": {"unetpp.pictures", "pipelines.page"},
    "scipy": {"unetpp.boundaries", "unetpp.objects"},
    "pycocotools": {"pipelines.coco"},
    "safetensors": {"unetpp.export"},
    "onnx": {"unetpp.graphs", "unetpp.quantisation"},
    "onnxruntime": {"unetpp.quantisation", "unetpp.runtimes"},
    "openvino": {"unetpp.runtimes"},
    "boto3": {"pipelines.storage"},
    "s3fs": {"pipelines.storage"},
    "botocore": {"pipelines.storage"},
    "mlflow": {f"pipelines.{name}" for name in ("tracking", "runs", "registry", "served")},
    "ray": {
        "pipelines.cluster",
        "pipelines.jobs",
        "pipelines.worker",
        "pipelines.trials",
        "pipelines.searchers",
        "pipelines.tuning",
        "pipelines.search",
    },
    "optuna": {"pipelines.searchers"},
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for package in ("unetpp", "pipelines") for path in (REPOSITORY / package).glob("*.py")}


def imports(path: Path, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            within = {f"{node.module}.{alias.name}" for alias in node.names} & set(FILES)
            found |= within or {node.module}
    return found


def layer_of(name: str) -> int:
    found = [number for number, names in enumerate(LAYERS) if name in names]
    assert found, f"{name} stands in no layer: add it to LAYERS in {__file__} and to the README's file map"
    return found[0]


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_only_go_down(name):
    layer = layer_of(name)
    for other in imports(FILES[name]) & set(FILES):
        if name in {"pipelines.cli", "unetpp"} or other == name:  # the one runs the stages, the other names its parts
            continue
        below = layer_of(other)
        assert below < layer or (below == layer and layer in BESIDE), f"{name} imports {other}"


@pytest.mark.parametrize("library", sorted(HOMES))
def test_each_outside_system_has_one_home(library):
    users = {name for name, path in FILES.items() if library in {one.split(".")[0] for one in imports(path)}}
    assert users <= HOMES[library]


def test_network_needs_torch_and_numpy_alone():
    code = (
        "import sys\n"
        "for name in ('ray', 'mlflow', 'dvc', 'albumentations', 'cv2', 'PIL', 'pyarrow', 'pydantic', 'boto3'):\n"
        "    sys.modules[name] = None\n"  # an import of it fails
        "import torch, unetpp, unetpp.loop, unetpp.loader, unetpp.device_augment, unetpp.checkpoint, unetpp.cost\n"
        "network, cpu = unetpp.NestedUNet((4, 6, 8)), torch.device('cpu')\n"
        "optimizer = unetpp.loop.make_optimizer(network, 'adamw', 1e-3, 0.9, 0.0)\n"
        "batch = (torch.rand(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.uint8))\n"
        "loss = unetpp.loop.make_loss('ce_dice', 'mean', network.depths)\n"
        "unetpp.loop.train_epoch(network, [batch], optimizer, lambda step: 1e-3, 0, cpu, torch.float32, loss)\n"
        "print(unetpp.Segmenter(unetpp.prune(network, 1)).eval()(batch[0]).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    assert "[2, 1, 16, 16]" in done.stdout


def test_command_line_is_quick_to_answer():
    code = "import sys, pipelines.cli; print(sorted({'torch', 'ray', 'mlflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.strip() == "[]"


def test_telemetry_is_off_in_every_process_of_ours():
    bare = {key: value for key, value in os.environ.items() if key not in TELEMETRY_OFF}
    code = f"import os, pipelines; print([os.environ.get(name) for name in {list(TELEMETRY_OFF)}])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, env=bare, check=True
    )
    assert done.stdout.strip() == str(list(TELEMETRY_OFF.values()))
    assert "analytics = false" in (REPOSITORY / ".dvc/config").read_text()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_lock_holds_every_dependency_of_pyproject_at_a_version_that_it_allows():
    from packaging.requirements import Requirement

    lines = (REPOSITORY / "requirements.lock").read_text().split("\n")
    pinned = dict(line.split("==") for line in lines if line)
    pinned = {normal(name.split("[")[0]): version for name, version in pinned.items()}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [one for extra in project["optional-dependencies"].values() for one in extra]
    for requirement in map(Requirement, wanted):
        version = pinned.get(normal(requirement.name))
        assert version, f"{requirement.name} is not in requirements.lock: make lock"
        assert requirement.specifier.contains(version), f"requirements.lock has {requirement.name} {version}: make lock"


def test_no_file_names_a_host_of_ours():
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=REPOSITORY, check=True).stdout
    for name in listed.split("\n"):
        path = REPOSITORY / name
        if name.startswith("studies/paper/results/"):
            continue  # a result says which build of torch made it
        if name and path.suffix in {".py", ".toml", ".yaml", ".lock", ".md", ".json", ""} and path.is_file():
            text = path.read_text(encoding="utf-8", errors="ignore")
            assert "+cpu" not in text or path.name in {"Makefile", "test_house.py"}, name
            assert not re.search(r"find-links|index-url", text) or path.name in {
                "Makefile",
                "test_house.py",
            }, name
