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
    command = ["encoders", "--data", str(tmp_path), "--out", str(out), *options.split()]
    monkeypatch.setattr(sys, "argv", [*command, *["--equal", "4", "5", "6", "--constants", "--seeds", "0", "1"]])
    encoders.main()
    text = out.read_text()
    assert "--equal 4 5 6 --seeds 0 1 --constants`. Read on" in text
    assert all(f"| ours, widths 4 5 6{end}, L{depth} |" in text for end in ("", encoders.CONSTANTS) for depth in (1, 2))
    assert text.count(f"| {encoders.PEER} |") == 2
    assert text.count(" by seed)") == 6
    assert "| ours, widths 4 6 8 |" in text
    assert "Not measured" not in text
    monkeypatch.setattr(encoders, "Peer", None)
    monkeypatch.setattr(encoders, "difference", None)  # there is nothing to compare with
    monkeypatch.setattr(sys, "argv", command)
    encoders.main()
    assert f"Not measured: {encoders.PEER}: TypeError" in out.read_text()
