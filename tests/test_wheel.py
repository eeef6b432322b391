"""The wheel, installed alone into an empty environment: what runs there with torch, numpy, Pillow and safetensors."""

import subprocess
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.predict import predict
from tests.conftest import REPOSITORY
from tests.wheels import Installed
from unetpp import NestedUNet, Trained
from unetpp.errors import to_install

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Installed:
    return Installed(tmp_path_factory.mktemp("wheel"))


def test_wheel_holds_every_file_of_the_packages(installed):
    tracked = subprocess.run(
        ["git", "ls-files", "unetpp", "pipelines"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert set(tracked.stdout.split()) <= set(zipfile.ZipFile(installed.wheel).namelist())
    assert any(name.endswith(".j2") for name in tracked.stdout.split())


def test_command_line_answers(installed):
    shown = installed.run("unetpp", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "predict" in shown.stdout
    assert installed.run("unetpp", "--version").stdout == "unetpp 0.1.0\n"


@pytest.mark.parametrize("size", [None, 16])
def test_a_png_is_predicted_as_with_all_packages(installed, tmp_path, size):
    torch.manual_seed(0)
    trained = Trained(NestedUNet((4, 6, 8), num_classes=3).eval(), size)
    trained.save(tmp_path / "model.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    model = str(tmp_path / "model.safetensors")
    done = installed.run("unetpp", "predict", str(tmp_path / "a.png"), "--model", model, "--out", str(tmp_path / "b"))
    assert done.returncode == 0, done.stderr
    predict([str(tmp_path / "a.png")], model, None, tmp_path / "c")
    masks = [np.array(Image.open(tmp_path / folder / "a.png")) for folder in "bc"]
    assert len(np.unique(masks[0])) > 1
    assert np.array_equal(masks[0], masks[1])


@pytest.mark.parametrize("command", [("mlflow",), ("compare", "a", "b"), ("try",)])
def test_a_command_whose_packages_are_missing_says_what_installs_them(installed, command):
    done = installed.run("unetpp", *command)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("pip install 'PATH[pipelines]' (PATH: the wheel or a clone of unetpp)\n")
    assert not list(installed.empty.iterdir())


def test_library_loads_what_it_can_and_says_what_it_cannot(installed, tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.tif")
    code = (
        "import unetpp\n"
        "from unetpp.images.decode import decode_mask\n"
        "for read, name in ((unetpp.load, 'models:/nuclei@champion'), (decode_mask, %r)):\n"
        "    try:\n"
        "        read(name)\n"
        "    except unetpp.UserError as error:\n"
        "        print(error)\n"
    )
    done = installed.run("python", "-c", code % str(tmp_path / "a.tif"))
    assert done.returncode == 0, done.stderr
    of_model, of_tiff = done.stdout.splitlines()
    assert of_model.startswith("models:/nuclei@champion: ")
    assert of_model.endswith(to_install("pipelines"))
    assert of_tiff.endswith(
        f"a.tif: found a TIFF, which tifffile reads; expected it to be installed: {to_install('images')}"
    )


def test_prediction_needs_no_module_that_windows_lacks(installed, tmp_path):
    code = (
        "import sys, torch, PIL.Image\n"
        "for name in ('fcntl', 'resource', 'pwd', 'grp', 'termios'):\n"
        "    sys.modules[name] = None\n"
        "import pipelines.cli, unetpp\n"
        "sys.argv = ['unetpp', 'predict', 'a.png', '--out', 'masks', '--model', 'model.safetensors']\n"
        f"import os; os.chdir({str(tmp_path)!r})\n"
        "unetpp.Trained(unetpp.NestedUNet((4, 6)), None).save('model.safetensors')\n"
        "PIL.Image.new('RGB', (20, 20)).save('a.png')\n"
        "pipelines.cli.main()\n"
    )
    done = installed.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "masks/a.png").is_file()
