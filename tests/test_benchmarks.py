"""Benchmarks: the GPU's at toy sizes, pages that name their machine, and code that the rest of the house still fits."""

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.contenders import EQUAL, widths_of
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.marked_tests import find_files
from benchmarks.gpu.roofline import find_passes
from benchmarks.gpu.scale import TOY
from benchmarks.machine import describe
from tests.conftest import REPOSITORY
from unetpp import NestedUNet
from unetpp.network.profiling import count_macs

BENCHMARKS = REPOSITORY / "benchmarks"


ROWS = {
    "step": 5,
    "roofline": 5,
    "passes": 9,
    "exchange": 2,
    "deterministic": 2,
    "augment": 3,
    "compile": 4,
    "compiled": 16,
    "peers": 0,
}


FEW = ("step", "roofline", "augment")  # the others are nightly
EACH = [part if part in FEW else pytest.param(part, marks=pytest.mark.nightly) for part in ROWS]


@pytest.mark.slow
@pytest.mark.parametrize("part", EACH)
def test_a_part_of_the_gpu_benchmark_runs_on_the_processor(monkeypatch, part):
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)  # a minute otherwise
    lines = list(gpu.PARTS[part].run(replace(TOY, compiles=True)))
    rows, heads = (sum(line.startswith(start) for line in lines) for start in ("|", "| ---"))
    assert rows - 2 * heads >= ROWS[part]
    assert not any("nan" in line for line in lines)
    assert not torch.are_deterministic_algorithms_enabled()


def test_parts_that_fail_or_take_too_long_are_a_line_beside_the_others(monkeypatch, tmp_path):
    """In processes: one whose argument is refused, one that has no time; and the page after each of them."""
    assert gpu.run_part("no such part", 60, toy=True)[-1].startswith("It failed with 2 after")
    assert gpu.run_part("machine", 0.1, toy=True) == ["", "Its 0 s were over before it was done."]
    out, pages = tmp_path / "gpu.md", []

    def run_part(name, _seconds, _toy):
        pages.append(out.read_text() if out.exists() else "")
        return ["Read on a machine."] if name == "machine" else [f"| {name} |", "", "It failed."]

    monkeypatch.setattr(gpu, "run_part", run_part)
    page = gpu.run_all(["machine", "step", "tests"], 8, toy=False, out=out)
    assert page == out.read_text()
    assert page.splitlines()[2].endswith("`. Read on a machine.")
    assert page.count("It failed.") == 2
    assert "| step |" in pages[2]
    assert "| tests |" not in pages[2]
    assert gpu.run_all(["machine", "step"], 0, toy=False, out=None).count("no time was left") == 2
    assert sum(part.seconds for part in gpu.PARTS.values()) <= 8 * 60


def test_what_the_gpu_benchmark_runs_imports_with_the_base_packages():
    found = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in find_files()]
    assert len(found) >= 2
    code = (
        "import importlib, sys\n"
        "others = 'ray mlflow dvc albumentations cv2 tifffile imagecodecs pyarrow pydantic boto3 psutil scipy yaml'\n"
        "for name in f'{others} sklearn hypothesis moto psycopg2 requests pandas onnx matplotlib'.split():\n"
        "    sys.modules[name] = None\n"  # an import of it fails
        f"for name in ['tests.conftest', 'benchmarks.gpu.__main__', *{found}]:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_floor_of_a_step_counts_each_convolution_forward_and_for_both_gradients():
    network = NestedUNet((4, 6, 8))
    passes = find_passes(NestedUNet((4, 6, 8)), 2, 16, 4)
    assert len(passes) == 3 * sum(isinstance(one, torch.nn.Conv2d) for one in network.modules()) - 1
    first = 2 * 9 * 3 * 4 * 2 * 16**2  # the image needs no gradient
    macs = 2 * count_macs(network.eval(), torch.randn(1, 3, 16, 16))
    assert sum(one.flops for one in passes) == 3 * 2 * macs - first
    assert passes[0].bytes == 4 * (2 * 3 * 16**2 + 9 * 3 * 4 + 2 * 4 * 16**2)
    assert (passes[0].floor_s(1e3, 1e12), passes[0].floor_s(1e12, 1e3)) == (first / 1e3, passes[0].bytes / 1e3)


@pytest.mark.parametrize("gmacs", [2.585, 2.294])  # of the peers at 96x96
def test_peers_are_compared_at_equal_operations(gmacs):
    network = NestedUNet(widths_of(int(gmacs * 1e9), 96)).to("meta").eval()
    assert abs(count_macs(network, torch.empty(1, 3, 96, 96, device="meta")) / gmacs / 1e9 - 1) < EQUAL / 10


@pytest.mark.parametrize("page", sorted(BENCHMARKS.glob("*.md")), ids=lambda path: path.name)
def test_a_page_names_its_command_and_its_machine_first(page):
    head = "\n".join(line for line in page.read_text().splitlines()[:8] if not line.startswith("|"))
    assert "python -m benchmarks." in head or "python benchmarks/" in head
    assert any(word in head for word in ("AVX", "avx", "Not measured yet"))


def test_a_machine_is_described_with_its_instruction_sets_and_the_measured_peak(monkeypatch):
    monkeypatch.setattr("benchmarks.machine.matrix_peak", lambda _dtype, _device: 2.055e12)
    monkeypatch.setattr("benchmarks.machine.find_processor", lambda: ("A processor", ["AMX bf16", "AVX2"]))
    told = describe(peaks=[torch.bfloat16])
    assert told.startswith("Read on A processor (AMX bf16, AVX2), ")
    assert told.endswith("Measured matrix peak: bf16 2.06 TFLOP/s.")


@pytest.mark.parametrize("path", sorted(BENCHMARKS.rglob("*.py")), ids=lambda path: path.name)
def test_what_a_benchmark_imports_of_ours_is_still_there(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in {"unetpp", "pipelines"}:
            there = _names(REPOSITORY / (node.module.replace(".", "/")))
            assert {one.name for one in node.names} <= there, f"line {node.lineno}: {node.module}"


def _names(module: Path) -> set[str]:
    """What a module defines or imports at its top, and the modules of a package."""
    path = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
    found = {one.stem for one in module.glob("*")} if module.is_dir() else set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {one.asname or one.name for one in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)  # names that are imported late
    return found
