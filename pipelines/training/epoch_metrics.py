"""The numbers of an epoch: as a row, and as curves."""

from typing import Any

from torch import Tensor


def make_row(epoch: int, totals: Tensor, depths: tuple[int, ...], learning_rate: float) -> dict[str, Any]:
    """The numbers of an epoch from the sums over all processes, (2 + num_heads, 2): see `train_epoch`, `validate`."""
    train_loss = (totals[0, 0] / totals[0, 1]).item()
    means = (totals[1:-1] / totals[-1]).tolist()
    row: dict[str, Any] = {"epoch": epoch + 1, "train_loss": train_loss, "learning_rate": learning_rate}
    for depth, (loss, iou) in zip(depths, means, strict=True):
        row[f"val_loss_L{depth}"], row[f"val_iou_L{depth}"] = loss, iou
    row["val_iou"] = sum(iou for _, iou in means) / len(means)  # every depth should be good
    return row


def curves_of(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of an epoch by the names of their curves in MLflow: `val_iou/L1` ..., `train_loss`."""
    curves = {key: float(row[key]) for key in ("train_loss", "learning_rate")}
    for key in row:
        if key.startswith(("val_iou_L", "val_loss_L")):
            name, _, depth = key.rpartition("_")
            curves[f"{name}/{depth}"] = float(row[key])
    return curves


def best_so_far(history: list[dict]) -> dict[str, float]:
    """The best val IoU of each depth over all epochs, and as "best_val_iou" that of the best depth."""
    names = [key for key in history[0] if key.startswith("val_iou_L")]
    best = {f"best_{name}": max(row[name] for row in history) for name in names}
    return best | {"best_val_iou": max(best.values())}
