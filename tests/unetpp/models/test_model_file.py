"""A model file is what was saved, byte for byte, or it is refused in one line, and builds and runs nothing."""

import hashlib
import json
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unetpp.network.classic import with_lived_in_norms
from unetpp import NestedUNet, UserError
from unetpp.images.frame import plain
from unetpp.models.model_file import UNSEALED, Trained, load_model


def make(**options) -> Trained:
    torch.manual_seed(0)
    return Trained(with_lived_in_norms(NestedUNet((4, 6, 8), **options)), 96, {"epoch": 3, "classes": ["nucleus"]})


@pytest.fixture(scope="module")
def trained() -> Trained:
    return make()


def test_a_saved_model_predicts_the_same(trained, tmp_path):
    trained.save(tmp_path / "model.safetensors")
    again, image = load_model(tmp_path), torch.rand(1, 3, 20, 28)
    assert (again.size, again.info, again.classes) == (trained.size, trained.info, ["nucleus"])
    assert again.sha256 == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    for depth in trained.depths:
        assert torch.equal(again.segmenter(depth)(image), trained.segmenter(depth)(image))
    assert all(parameter.requires_grad for parameter in again.network.parameters())
    assert load_file(tmp_path / "model.safetensors").keys() == trained.network.state_dict().keys()


@pytest.mark.parametrize("depth", [1, 2, None])
def test_a_folded_depth_predicts_as_the_depth_that_it_was_made_of(trained, tmp_path, depth):
    trained.folded(depth).save(tmp_path / "model.safetensors")
    again, image = load_model(tmp_path), torch.rand(2, 3, 21, 30)
    with torch.inference_mode():
        torch.testing.assert_close(again.segmenter()(image), trained.segmenter(depth)(image), atol=1e-5, rtol=0)
    assert (again.size, again.info, again.depths) == (trained.size, trained.info, (depth or 2,))


def test_heads_that_were_kept_can_still_be_pruned_to_and_averaged(trained):
    folded, image = trained.folded(2, keep_heads=True), torch.rand(1, 3, 9, 12)
    assert folded.depths == (1, 2)
    with torch.inference_mode():
        torch.testing.assert_close(folded.segmenter(1)(image), trained.segmenter(1)(image), atol=1e-5, rtol=0)
        torch.testing.assert_close(folded.ensemble()(image), trained.ensemble()(image), atol=1e-5, rtol=0)
    assert make(skips="plain", deep_supervision=False).folded(keep_heads=True).depths == (2,)


def test_the_same_network_gives_the_same_bytes(trained, tmp_path):
    for name in "ab":
        trained.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_model_loads_with_torch_numpy_and_safetensors_alone(trained, tmp_path, repository):
    trained.save(tmp_path / "model.safetensors")
    code = (
        "import sys\n"
        "for name in ('ray', 'mlflow', 'dvc', 'albumentations', 'cv2', 'PIL', 'pyarrow', 'pydantic', 'boto3', 'onnx',\n"
        "             'onnxruntime', 'onnxscript', 'openvino', 'scipy', 'yaml'):\n"
        "    sys.modules[name] = None\n"  # an import of it fails
        "import torch, unetpp\n"
        "print(tuple(unetpp.load(sys.argv[1]).segmenter()(torch.rand(2, 3, 5, 9)).shape))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=repository, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 1, 5, 9)"


def save_as_before(trained: Trained, folder, kind: str):
    """What earlier versions wrote: a zip of torch's, or weights and a config.json."""
    weights = {key: value.contiguous() for key, value in trained.network.state_dict().items()}
    config = trained.network.config()
    if kind == "model.pt":
        about = {"format": 2, "config": config, "size": plain(trained.size), "info": trained.info}
        torch.save(about | {"weights": weights}, folder / kind)
    else:
        save_file(weights, folder / kind)
        digest = hashlib.sha256((folder / kind).read_bytes()).hexdigest()
        about = {"format": "unetpp", "version": 1, "network": config, "size": plain(trained.size), "info": trained.info}
        (folder / "config.json").write_text(json.dumps(about | {"sha256": digest}))
    return folder / kind


@pytest.mark.parametrize("kind", ["now", "model.pt", "model.safetensors"])
def test_one_flipped_bit_anywhere_is_noticed_or_changes_nothing(trained, tmp_path, kind):
    if kind == "now":
        file = tmp_path / "model.safetensors"
        trained.save(file)
    else:
        file = save_as_before(trained, tmp_path, kind)
    whole, weights = file.read_bytes(), load_model(file).network.state_dict()
    header = struct.unpack("<Q", whole[:8])[0]
    places = [*range(0, 64, 5), *range(64, min(header, 4000), 101), *range(64, len(whole), 997), len(whole) - 1]
    for number, place in enumerate(places):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << number % 8
        file.write_bytes(damaged)
        found = None
        with suppress(UserError):
            found = load_model(file)
        if found:  # of a zip: bits that nobody reads
            assert kind == "model.pt"
            assert all(torch.equal(value, weights[key]) for key, value in found.network.state_dict().items())
            assert (found.size, found.info) == (trained.size, trained.info)
    file.write_bytes(whole)
    assert load_model(file).size == (96, 96)


def sealed(file, change) -> None:
    """The model file after `change` of its metadata, sealed as if that were right."""
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    about = json.loads(header["__metadata__"]["unetpp"])
    change(about)
    header["__metadata__"]["unetpp"] = json.dumps(about | {"seal": UNSEALED})
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + content[8 + length :]
    file.write_bytes(content.replace(UNSEALED.encode(), hashlib.sha256(content).hexdigest().encode(), 1))


@pytest.mark.parametrize("seal", ["", "0", "f" * 64])
def test_another_seal_is_refused(trained, tmp_path, seal):
    file = tmp_path / "model.safetensors"
    trained.save(file)
    sealed(file, lambda _: None)
    load_model(file)
    length = struct.unpack("<Q", file.read_bytes()[:8])[0]
    header = json.loads(file.read_bytes()[8 : 8 + length])
    about = json.loads(header["__metadata__"]["unetpp"]) | {"seal": seal}
    text = json.dumps(header | {"__metadata__": {"unetpp": json.dumps(about)}})
    file.write_bytes(struct.pack("<Q", len(text)) + text.encode() + file.read_bytes()[8 + length :])
    with pytest.raises(UserError, match="found the sha256"):
        load_model(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": [4, 8]}, "nodes.0_0.conv1.weight|nodes"),
        ({"widths": [10**5] * 7}, r"nodes.0_0.conv1.weight: found \(4, 3, 3, 3\) .*; expected \(100000, 3, 3, 3\)"),
        ({"widths": [10**9] * 3}, "cannot be built"),
        ({"widths": [10**30, 4]}, "cannot be built"),
        ({"widths": 5}, "cannot be built"),
        ({"layers": 3}, "cannot be built"),
        ({"norm": "group"}, r"nodes\..*norm.*: found .*; expected none"),
        ({"num_classes": 10**8}, r"heads\.1\.weight: found .*; expected \(100000000, 4, 1, 1\)"),
    ],
)
def test_a_network_of_other_tensors_is_refused_before_it_is_built(trained, tmp_path, change, message):
    file = tmp_path / "model.safetensors"
    trained.save(file)
    sealed(file, lambda about: about["network"].update(change))
    with pytest.raises(UserError, match=message):
        load_model(file)


def test_a_declared_width_allocates_nothing(trained, tmp_path, repository):
    trained.save(tmp_path / "a")
    sealed(tmp_path / "a", lambda about: about["network"].update(widths=[20_000] * 5))  # 250 GB
    weights = {key: torch.zeros(()).expand(value.shape) for key, value in NestedUNet((4, 6)).state_dict().items()}
    about = {"format": 2, "config": NestedUNet((4, 6)).config(), "size": None, "info": {}, "weights": weights}
    torch.save(about, tmp_path / "b")
    code = (
        "import resource, sys\n"
        "from unetpp.models.model_file import load_model\n"
        "import unetpp.models.segmenter, safetensors.torch\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        load_model(name)\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    command = [sys.executable, "-c", code, tmp_path / "a", tmp_path / "b"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository, check=False)
    assert done.returncode == 0, done.stderr
    assert "expected (20000, 3, 3, 3)" in done.stdout
    assert "tensors that claim to be larger than their data" in done.stdout


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("everywhere", [True, False])
def test_weights_that_are_not_finite_are_refused(tmp_path, value, everywhere):
    trained = make()
    for parameter in trained.network.parameters():
        (parameter.data if everywhere else parameter.data.view(-1)[-1:]).fill_(value)
    trained.save(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: nodes\..*: found non-finite weights"):
        load_model(tmp_path)


FOREIGN = {
    "empty": b"",
    "short": b"\x02",
    "pickle": b"\x80\x04K\x01.",
    "text": b"not a model at all",
    "deep": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "list": struct.pack("<Q", 2) + b"[]",
    "others'": struct.pack("<Q", 2) + b"{}",
    "their metadata": struct.pack("<Q", 28) + b'{"__metadata__":{"unetpp":1}',
    "long": struct.pack("<Q", 2**63) + b"{}",
    "zip": b"PK\x03\x04 and no more",
    "utf16": struct.pack("<Q", 10) + "{}   ".encode("utf-16-le"),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_files_that_are_no_models_are_refused_in_a_line(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=r"^[^\n]*/a: [^\n]+$"):
        load_model(tmp_path / "a")


def test_a_missing_model_and_a_torn_one_are_refused_by_name(trained, tmp_path):
    with pytest.raises(UserError, match=r"model\.safetensors: no such model"):
        load_model(tmp_path)
    trained.save(tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors: found the sha256 .*damaged or was changed"):
        load_model(tmp_path)
    torch.save({"weights": {}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt: not a model"):
        load_model(tmp_path / "other.pt")


def test_what_earlier_versions_wrote_is_read_or_refused_by_its_sum(trained, tmp_path):
    (tmp_path / "pair").mkdir()
    image = torch.rand(1, 3, 16, 24)
    for file in (
        save_as_before(trained, tmp_path, "model.pt"),
        save_as_before(trained, tmp_path / "pair", "model.safetensors"),
    ):
        again = load_model(file.parent)
        assert torch.equal(again.segmenter()(image), trained.segmenter()(image))
        assert again.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    config = tmp_path / "pair/config.json"
    said = json.loads(config.read_text())
    for change, message in (
        ({"version": 2}, "found format 'unetpp' version 2"),
        ({"sha256": "ab"}, "from another export than config.json"),
        ({"network": {"layers": 3}}, "cannot be built"),
    ):
        config.write_text(json.dumps(said | change))
        with pytest.raises(UserError, match=message):
            load_model(tmp_path / "pair")
    replace(trained, size=1).save(tmp_path / "pair/model.safetensors")  # a new one beside an old config.json
    assert load_model(tmp_path / "pair").size == (1, 1)
