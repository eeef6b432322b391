"""Which test images the report shows: the best, the median, the worst, and some others."""

from pathlib import Path

import numpy as np

from pipelines.console.progress import watched
from pipelines.evaluation.predictor import Predictor
from pipelines.evaluation.quality import number_mask
from unetpp.data.arrow_split import Split
from unetpp.network.masks import to_mask

BAD = 0.4  # share of the worst among the others: errors tell more than successes


def _order(rows: list[dict], name: str) -> list[int]:
    """The indices in `rows` from the best image of a name to the worst; ties are ordered by id."""
    return sorted(range(len(rows)), key=lambda index: (-rows[index][f"iou_{name}"], rows[index]["id"]))


def find_extremes(rows: list[dict], name: str) -> dict[str, int]:
    """The indices in `rows` (of images.csv) of the best, the median and the worst image of a name."""
    order = _order(rows, name)
    return {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}


def pick(rows: list[dict], name: str, number: int) -> list[tuple[str | None, int]]:
    """(rank, index in `rows`) of up to `number` images, each once, from the best to the worst of a name.

    They include the best, the median and the worst; the others (rank None) are more of the worst, and a rest spread
    evenly.
    """
    order, extremes = _order(rows, name), find_extremes(rows, name)
    rank_of: dict[int, str | None] = {}
    for rank in ("best", "worst", "median"):  # a single image gets the first
        rank_of.setdefault(extremes[rank], rank)
    others = [index for index in order if index not in rank_of]
    free = min(number - len(rank_of), len(others))
    bad = round(BAD * free)
    spread = np.linspace(0, len(others) - bad - 1, free - bad).round().astype(int).tolist()
    chosen = [others[place] for place in spread] + others[len(others) - bad :]
    rank_of |= dict.fromkeys(chosen)
    return [(rank_of[index], index) for index in order if index in rank_of]


def write_examples(path: Path, predict: Predictor, split: Split, indices: list[int]) -> None:
    """Write images of a split as `INDEX/image`, `INDEX/mask`, and the predictions of each depth as `INDEX/L1` ...

    If the network separates objects, also their numbers: `INDEX/objects`, `INDEX/L1/objects` ...
    """
    shown = {}
    for index in watched(indices, "the page, images"):
        image, mask = split[index]
        shown |= {f"{index}/image": image, f"{index}/mask": mask}
        for answer in predict.answers([image]):
            (numbers,), key = predict.numbers(answer), f"{index}/{answer.name}"
            shown[key] = to_mask(answer.probs, *predict.task[:2])[0].numpy()
            if numbers is not None:
                true = number_mask(mask, split.instances(index), predict.task[2])
                shown |= {f"{key}/objects": numbers, f"{index}/objects": true}
    np.savez_compressed(path, **shown)
