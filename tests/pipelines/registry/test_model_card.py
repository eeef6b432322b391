"""Laws of what a version says of itself."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import register as stage
from pipelines.registry.model_card import Family, describe_network, family_description, version_description
from tests.pipelines.registry.family import inputs, settings, write_stages
from tests.unetpp.network.imagenet import LITE
from unetpp.models.model_file import Trained
from unetpp.network.masks import FOR_INSTANCES
from unetpp.network.model import NestedUNet

AP = {"dsb_ap": 0.551, "dsb_ap_low": 0.52, "dsb_ap_high": 0.58}
OBJECTS = {"true": "numbers", "predicted": "watershed", "remark": "Depths differ more for objects than for masks: so."}


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Family:
    return stage.read_family(inputs(write_stages(tmp_path_factory.mktemp("a run"))), settings())


def test_a_model_that_parts_objects_tells_ap_with_its_interval_and_of_what_it_is(family):
    depths = {name: row | AP for name, row in family.metrics["depths"].items()}
    parted = replace(
        family,
        metrics=family.metrics | {"depths": depths, "objects": OBJECTS},
        trained=Trained(NestedUNet([4, 8, 16], targets=FOR_INSTANCES).eval(), 96),
    )
    assert parted.tags(1)["targets"] == "mask, boundary, distance"
    for text in (version_description(parted, {1: "3", 2: "4"}, 2), family_description(parted, {1: "3", 2: "4"})):
        assert "0.551 (0.520 to 0.580)" in text
        assert "AP: of predicted objects (separated by a watershed) against the objects numbered in the data" in text
        assert f"\n\n{OBJECTS['remark']}\n\n" in text
        assert "skips dense; targets mask, boundary, distance." in text
        assert "float32 `(3, H, W)`, the foreground's probability; then boundary and distance; with " in text
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows[:4]}) == 1


def test_a_report_of_before_has_no_column_of_ap(family):
    assert "targets" not in family.tags(1)
    assert "AP" not in version_description(family, {1: "3", 2: "4"}, 1)


def test_card_names_the_encoder_and_the_sha256_of_its_weights():
    def told(encoder: str | None, info: dict) -> str:
        family: Any = SimpleNamespace(trained=Trained(NestedUNet((4, 6), encoder=encoder), None, info))
        return describe_network(family)

    begun = {"encoder_weights": {"uri": "lite0.pth", "sha256": "0" * 64}}
    assert told(LITE, begun) == (
        f"encoder {LITE} initialised from lite0.pth, sha256 `{'0' * 64}`; widths 4, 6; skips dense"
    )
    assert told(LITE, {}) == f"encoder {LITE}; widths 4, 6; skips dense"
    assert told(None, {}) == "widths 4, 6; skips dense"
