"""benchmarks/encoders.py on a toy set, with a stand-in for the peer, which is no dependency of ours."""

import sys

import numpy as np
from PIL import Image

from benchmarks import encoders
from unetpp import NestedUNet


def test_both_networks_are_trained_scored_timed_and_compared(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "pets" / kind).mkdir(parents=True)
    for number in range(12):
        image = rng.integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / f"pets/images/{number}.png")
        Image.fromarray((image[..., 0] > 128).astype(np.uint8)).save(tmp_path / f"pets/masks/{number}.png")

    def stand_in(encoder, widths, num_classes, _weights):
        return NestedUNet(widths, 3, num_classes, deep_supervision=False, encoder=encoder)

    monkeypatch.setattr(encoders, "Peer", stand_in)
    options = "--size 16 --epochs 1 --batch-size 4 --rounds 1 --precision fp32 --widths 4 6 8"
    out = tmp_path / "encoders.md"
    monkeypatch.setattr(sys, "argv", ["encoders", "--data", str(tmp_path), "--out", str(out), *options.split()])
    encoders.main()
    text = out.read_text()
    assert "| ours, L1 |" in text
    assert "| ours, L2 |" in text
    assert text.count(f"| {encoders.PEER} |") == 2
    assert "Not measured" not in text
    monkeypatch.setattr(encoders, "Peer", None)
    monkeypatch.setattr(encoders, "difference", None)  # there is nothing to compare with
    encoders.main()
    assert f"Not measured: {encoders.PEER}: TypeError" in out.read_text()
