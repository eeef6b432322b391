"""Laws of the house: layers, the lock, and silence."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from unetpp.offline import TELEMETRY_OFF, silenced

# The law of layers, lowest first: a file imports from its own wing and from rows above that of its wing.
LAYERS = (
    {"unetpp"},
    {"core", "console"},
    {"storage", "evaluation", "served"},
    {"dataset", "training", "cluster"},
    {"tuning", "registry", "prediction"},
    {"planning"},
    {"pages"},
    {"trying"},
    {"stages and commands"},  # a stage never imports a stage; the command line imports all of them, late
    {"project"},  # a project is planned from what stage ingest brings
    {"commandline"},
)
WITHIN_UNETPP = (
    {"errors", "offline", "threads"},
    {"files"},
    {"images", "network"},
    {"data", "scores"},
    {"models"},
    {"engines"},
    {"inference"},
    {"training", "export"},
    {"the public names"},
)
BESIDE = {("console", "core")}  # what a person sees is written by core's whole files
HOMES = {  # each outside system has one home file, or one wing, or the few that are named
    "albumentations": {"unetpp.data.augment"},
    "pyarrow": {"unetpp.data.arrow_split"},
    "tifffile": {f"unetpp.images.{name}" for name in ("tiff_pages", "tiff_windows", "row_writers", "pictures")},
    "imagecodecs": {"unetpp.images.pictures"},
    "PIL": {"unetpp.images.pictures", "pipelines.pages.html_page"},
    "scipy": {"unetpp.scores.boundaries", "unetpp.scores.object_matching"},
    "skimage": {"unetpp.inference.instances"},
    "pycocotools": {"pipelines.dataset.coco"},
    "safetensors": {"unetpp.models.model_file", "unetpp.models.older_files", "unetpp.network.encoders"},
    "timm": {"unetpp.network.encoders"},
    "torchvision": {"unetpp.network.encoders"},
    "onnx": {"unetpp.export.graphs", "unetpp.export.quantisation"},
    "onnxruntime": {"unetpp.export.quantisation", "unetpp.engines.runtimes"},
    "openvino": {"unetpp.engines.runtimes"},
    "boto3": {"pipelines.storage.s3"},
    "botocore": {"pipelines.storage.s3"},
    "jinja2": {"pipelines.pages.html_page"},
    "requests": {"pipelines.storage.http_download", "pipelines.registry.mlflow_store"},
    "mlflow": {
        *(f"pipelines.registry.{name}" for name in ("mlflow_store", "runs", "model_versions")),
        *(f"pipelines.served.{name}" for name in ("params", "answers")),
    },
    "ray": {
        "pipelines.cluster.ray_cluster",
        "pipelines.cluster.jobs",
        "pipelines.training.private_calls",
        "pipelines.training.ray_worker",
        "pipelines.tuning.trials",
        "pipelines.tuning.algorithms",
        "pipelines.tuning.ray_tune",
        "pipelines.tuning.probe",
        "pipelines.prediction.ray_tasks",
    },
    "optuna": {"pipelines.tuning.algorithms"},
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for package in ("unetpp", "pipelines") for path in (REPOSITORY / package).rglob("*.py")}


@cache
def imports(path: Path) -> set[str]:
    """The modules that a file imports, at its top or later."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: a relative import"
            within = {f"{node.module}.{alias.name}" for alias in node.names} & set(FILES)
            found |= within or {node.module}
    return found


def wing_of(name: str) -> str:
    package, *rest = name.split(".")
    if package == "unetpp":
        return rest[0] if rest else "the public names"
    if not rest:
        return "core"  # the package itself turns telemetry off
    return rest[0] if len(rest) > 1 or FILES[name].name == "__init__.py" else "stages and commands"


def row_of(wing: str, rows: tuple[set[str], ...]) -> int:
    found = [number for number, wings in enumerate(rows) if wing in wings]
    assert found, f"{wing} stands in no row of the layers in {__file__}"
    return found[0]


def test_imports_only_go_down():
    arrows = [(name, other) for name in FILES for other in imports(FILES[name]) & set(FILES)]
    for name, other in arrows:
        if name == "pipelines.cli" or other in (name, "unetpp", "pipelines"):
            continue
        rows = WITHIN_UNETPP if name.startswith("unetpp") else LAYERS
        assert name.startswith("pipelines") or other.startswith("unetpp"), f"{name} imports {other}"
        ours, theirs = wing_of(name), "unetpp" if other.startswith("unetpp") and rows is LAYERS else wing_of(other)
        beside = (ours, theirs) in BESIDE or (ours == theirs and ours != "stages and commands")
        assert beside or row_of(theirs, rows) < row_of(ours, rows), f"{name} imports {other}"


def test_no_file_imports_itself_by_a_way_round():
    arrows = {name: imports(path) & set(FILES) - {name, "unetpp", "pipelines"} for name, path in FILES.items()}
    assert len(arrows) > 100
    TopologicalSorter(arrows).prepare()  # raises CycleError, which names the circle


def test_a_wing_is_a_folder_that_one_takes_in_at_a_glance():
    for folder in {path.parent for path in FILES.values()}:
        code = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(code) <= 16, f"{folder}: {len(code)} files"
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), f"{folder} does not say what it is"


def test_no_file_is_longer_than_one_concept():
    code = [
        path for name in ("pipelines", "unetpp", "benchmarks", "studies") for path in (REPOSITORY / name).rglob("*.py")
    ]
    lines = {path.relative_to(REPOSITORY).as_posix(): path.read_text().count("\n") for path in code}
    assert {name: number for name, number in lines.items() if number > 300} == {}


def test_each_outside_system_has_one_home():
    used = {(one.split(".")[0], name) for name, path in FILES.items() for one in imports(path)}
    assert [(library, name) for library, name in sorted(used) if name not in HOMES.get(library, {name})] == []


def test_network_needs_torch_and_numpy_alone():
    code = (
        "import sys\n"
        "names = 'ray mlflow dvc albumentations cv2 PIL tifffile imagecodecs pyarrow pydantic boto3'\n"
        "for name in names.split():\n"
        "    sys.modules[name] = None\n"  # an import of it fails
        "import torch, unetpp, unetpp.data.loader, unetpp.data.device_augment, unetpp.training.checkpoint\n"
        "from unetpp.network import profiling\n"
        "from unetpp.training import loop\n"
        "network, cpu = unetpp.NestedUNet((4, 6, 8)), torch.device('cpu')\n"
        "optimizer = loop.make_optimizer(network, 'adamw', 1e-3, 0.9, 0.0)\n"
        "batch = (torch.rand(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.uint8))\n"
        "loss = loop.make_loss('ce_dice', 'mean', network.depths)\n"
        "loop.train_epoch(network, [batch], optimizer, lambda step: 1e-3, 0, cpu, torch.float32, loss)\n"
        "pairs = [(image, mask) for image, mask in zip(*batch)]\n"
        "trained = unetpp.fit(unetpp.Trained(network, 16), pairs, pairs, epochs=1)\n"
        "print(unetpp.Predictor(trained, 1).mask(batch[0].numpy()[0].transpose(1, 2, 0)).shape)\n"
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


def test_a_hosts_settings_are_as_before_what_was_silenced(monkeypatch):
    monkeypatch.setenv("DVC_NO_ANALYTICS", "mine")
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    environment, modules = dict(os.environ), dict(sys.modules)
    with silenced():
        assert (os.environ["DVC_NO_ANALYTICS"], os.environ["ORT_DISABLE_TELEMETRY"]) == ("mine", "1")
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("openvino_telemetry")
    assert (dict(os.environ), dict(sys.modules)) == (environment, modules)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_lock_holds_every_dependency_of_pyproject_at_a_version_that_it_allows():
    from packaging.requirements import Requirement

    words = (REPOSITORY / "requirements.lock").read_text().split()
    pinned = dict(word.split("==") for word in words if "==" in word)
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
                "wheels.py",
            }, name


@pytest.mark.slow
def test_tests_of_a_group_share_a_process(tmp_path):
    # pytest-xdist 3.8 forgets the groups under pytest 9.2: then two Rays run at once and disturb each other.
    (tmp_path / "test_group.py").write_text(
        "import os, pathlib, pytest\n"
        "pytestmark = pytest.mark.xdist_group('one')\n"
        "@pytest.mark.parametrize('number', range(6))\n"
        "def test_one(number):\n"
        "    pathlib.Path(__file__).with_name(f'pid-{os.getpid()}').touch()\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider"]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("pid-*"))) == 1
