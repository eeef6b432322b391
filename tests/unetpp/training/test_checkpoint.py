import pytest
import torch

from unetpp.training.checkpoint import (
    STATE,
    DamagedCheckpointError,
    load_checkpoint,
    save_checkpoint,
)


def write(folder, epoch: int) -> None:
    folder.mkdir(parents=True)
    save_checkpoint(folder, {"epoch": epoch, "weights": {"w": torch.full((50,), float(epoch))}})


def test_checkpoint_reads_back(tmp_path):
    write(tmp_path / "one", 3)
    state = load_checkpoint(tmp_path / "one")
    assert state["epoch"] == 3
    assert torch.equal(state["weights"]["w"], torch.full((50,), 3.0))


def flip_a_byte(file) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip_a_byte(folder / STATE),
        lambda folder: (folder / STATE).write_bytes((folder / STATE).read_bytes()[:-1]),
        lambda folder: (folder / STATE).unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
    ],
    ids=["flipped byte", "truncated", "no state", "no manifest", "torn manifest"],
)
def test_damaged_checkpoint_is_refused_by_its_name(tmp_path, damage):
    write(tmp_path / "checkpoint_a", 3)
    damage(tmp_path / "checkpoint_a")
    with pytest.raises(DamagedCheckpointError, match="checkpoint_a"):
        load_checkpoint(tmp_path / "checkpoint_a")
