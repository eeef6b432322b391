import json
from dataclasses import replace

import pytest
import torch

from tests.unetpp.network.classic import with_lived_in_norms
from unetpp import NestedUNet, UserError
from unetpp.export.safetensors_files import load_safetensors, read_safetensors, save_safetensors
from unetpp.inference.model_file import Trained


@pytest.fixture
def trained() -> Trained:
    torch.manual_seed(0)
    return Trained(with_lived_in_norms(NestedUNet((4, 6, 8))), 96, {"epoch": 3, "classes": ["nucleus"]})


@pytest.mark.parametrize("depth", [1, 2, None])
def test_safetensors_predict_as_the_depth_that_they_were_made_of(trained, tmp_path, depth):
    save_safetensors(trained, depth, tmp_path)
    image = torch.rand(2, 3, 21, 30)
    with torch.inference_mode():
        torch.testing.assert_close(
            load_safetensors(tmp_path)(image), trained.segmenter(depth)(image), atol=1e-5, rtol=0
        )
    again = read_safetensors(tmp_path)
    assert (again.size, again.info, again.classes) == (trained.size, trained.info, ["nucleus"])
    assert again.depths == (depth or 2,)


def test_heads_that_were_kept_can_still_be_pruned_to_and_averaged(trained, tmp_path):
    save_safetensors(trained, 2, tmp_path, keep_heads=True)
    again, image = read_safetensors(tmp_path), torch.rand(1, 3, 9, 12)
    assert again.depths == (1, 2)
    with torch.inference_mode():
        torch.testing.assert_close(again.segmenter(1)(image), trained.segmenter(1)(image), atol=1e-5, rtol=0)
        torch.testing.assert_close(again.ensemble()(image), trained.ensemble()(image), atol=1e-5, rtol=0)


def test_one_head_is_kept_where_there_is_one(tmp_path):
    network = NestedUNet((4, 6, 8), skips="plain", deep_supervision=False)
    save_safetensors(Trained(with_lived_in_norms(network), None), None, tmp_path, keep_heads=True)
    assert read_safetensors(tmp_path).depths == (2,)


def test_the_same_network_gives_the_same_bytes(trained, tmp_path):
    for name in ("a", "b"):
        save_safetensors(trained, 2, tmp_path / name)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_safetensors_that_are_missing_damaged_or_exchanged_are_refused_by_name(trained, tmp_path):
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        load_safetensors(tmp_path)
    save_safetensors(trained, 1, tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, said = weights.read_bytes(), json.loads(config.read_text())

    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"model\.safetensors: found sha256 .*damaged or of another export"):
        load_safetensors(tmp_path)
    save_safetensors(replace(trained, network=NestedUNet((4, 6, 8))), 1, tmp_path / "other")
    weights.write_bytes((tmp_path / "other/model.safetensors").read_bytes())
    with pytest.raises(UserError, match="another export"):
        load_safetensors(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        load_safetensors(tmp_path)
    weights.write_bytes(whole)

    for change, message in (
        ({"version": 2}, "found format 'unetpp' version 2"),
        ({"format": None}, "found format None"),
        ({"network": said["network"] | {"widths": [4, 8]}}, "not those of the network"),
        ({"network": said["network"] | {"norm": "batch"}}, "not those of the network"),
        ({"network": {"layers": 3}}, "not those of the network"),
    ):
        config.write_text(json.dumps(said | change))
        with pytest.raises(UserError, match=message):
            load_safetensors(tmp_path)
    for text in ("{", "[]"):
        config.write_text(text)
        with pytest.raises(UserError, match=r"config\.json: not the JSON of an export"):
            load_safetensors(tmp_path)
