"""A model of two depths in a project with the depth report of it, and its page as a server."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import numpy as np
import torch

from pipelines.trying.page import build_page
from pipelines.trying.server import Server, limits
from pipelines.trying.subject import find_subject
from unetpp import NestedUNet, Trained, load


def write_model(project: Path, **config) -> Path:
    """models/train of a project; random weights, whose masks hold more than one value."""
    torch.manual_seed(0)
    network = NestedUNet((2, 3, 4), in_channels=3, **config).eval()
    names = [f"class {number}" for number in range(network.num_classes)]
    folder = project / "models/train"
    folder.mkdir(parents=True)
    names = names[1:] if network.num_classes > 1 and not network.multilabel else names
    Trained(network, None, {"classes": names}).save(folder / "model.safetensors")
    return folder


def write_report(project: Path, depth: int | None = 1) -> None:
    """reports/evaluate of a project: what it recommends, and three test images."""
    rng, folder = np.random.default_rng(0), project / "reports/evaluate/page"
    folder.mkdir(parents=True)
    report = {"model_sha256": load(project / "models/train").sha256, "depths": {"L1": {}, "L2": {}}}
    report |= {"recommended_depth": depth, "recommendation": "L1 is <recommended>: it is as good.", "nearest_depth": 2}
    (folder.parent / "report.json").write_text(json.dumps(report))
    samples = [{"rank": rank, "row": row} for row, rank in enumerate(("best", "median", "worst"))]
    page = {"report": report, "samples": samples, "rows": [{"id": f"image {row}"} for row in range(3)]}
    (folder / "page.json").write_text(json.dumps(page | dict.fromkeys(("extremes", "shown", "rule", "provenance"))))
    shown = {}
    for row in range(3):
        image = rng.integers(0, 256, (40, 56, 3), np.uint8)
        masks = {name: (image[..., 0] > 128).astype(np.uint8) for name in ("mask", "L1", "L2")}
        shown |= {f"{row}/{name}": one for name, one in ({"image": image} | masks).items()}
    np.savez_compressed(folder / "shown.npz", **shown)


@contextmanager
def serving(model: Path) -> Iterator[Server]:
    """The page of a model, served by this process."""
    subject = find_subject(str(model))
    server = Server(subject, build_page(subject, limits(subject)))
    threads = [Thread(target=server.serve_forever, args=(0.01,)), Thread(target=server.work)]
    for one in threads:
        one.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.end()
        for one in threads:
            one.join()
        server.server_close()
