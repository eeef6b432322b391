"""What the card of a version says of the network."""

from types import SimpleNamespace
from typing import Any

from pipelines.registry.model_card import describe_network
from tests.unetpp.network.imagenet import LITE
from unetpp import NestedUNet, Trained


def test_card_names_the_encoder_and_the_sha256_of_its_weights():
    def told(encoder: str | None, info: dict) -> str:
        family: Any = SimpleNamespace(trained=Trained(NestedUNet((4, 6), encoder=encoder), None, info))
        return describe_network(family)

    begun = {"encoder_weights": {"uri": "lite0.pth", "sha256": "0" * 64}}
    assert told(LITE, begun) == (
        f"encoder {LITE} with the weights lite0.pth, sha256 `{'0' * 64}`; widths 4, 6; skips dense"
    )
    assert told(LITE, {}) == f"encoder {LITE}; widths 4, 6; skips dense"
    assert told(None, {}) == "widths 4, 6; skips dense"
