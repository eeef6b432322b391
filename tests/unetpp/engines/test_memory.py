"""Laws of what engines hold for a part of an image: the side of tiles counts on it."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.unetpp.inference.test_tiles import segmenter
from unetpp.engines.runtimes import open_export
from unetpp.export.graphs import capture, save_onnx
from unetpp.inference.tiles import HELD
from unetpp.models.about import About

WIDTHS = (16, 32, 48)  # ONNX Runtime keeps its layout where they are multiples of 16
PX = 608
# Peak of a part above that of the engine when it has computed a small image, and what it answers.
SCRIPT = f"""
import sys
from pathlib import Path
import numpy as np
from unetpp.engines.runtimes import open_export
from unetpp.models.about import About

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

one = open_export(sys.argv[1], sys.argv[2], About({{"widths": {WIDTHS}}}, None), threads=1)
image, statistics = np.random.default_rng(0).random((1, 3, {PX}, {PX}), np.float32), np.full((1, 3, 2), 0.5, np.float32)
one(image[..., :32, :32], statistics)
before = peak()
one(image, statistics)
one(image, statistics)
print(peak() - before)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network and its ONNX file."""
    one, path = segmenter(WIDTHS), tmp_path_factory.mktemp("export") / "model.onnx"
    save_onnx(capture(one), path, 20)
    return one, path


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_part_holds_what_the_side_of_tiles_counts_on(exported, name):
    done = subprocess.run([sys.executable, "-c", SCRIPT, exported[1], name], capture_output=True, text=True, check=True)
    last_node = 4 * 2 * (2 * WIDTHS[0] + WIDTHS[1]) * PX**2
    assert int(done.stdout) < 1.3 * HELD.get(name, 1) * last_node


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_parts_of_any_size_are_those_of_the_network(exported, name):
    one, path = exported
    found = open_export(path, name, About(one.network.config(), None), threads=1)
    statistics = np.full((1, 3, 2), 0.5, np.float32)
    for size in ((608, 512), (512, 608), (40, 30), (608, 512)):
        image = np.random.default_rng(0).random((1, 3, *size), np.float32)
        np.testing.assert_allclose(found(image, statistics), expected(one, image, statistics), atol=1e-5)


def expected(one, image, statistics):
    with torch.inference_mode():
        return one(torch.from_numpy(image), torch.from_numpy(statistics)).numpy()
