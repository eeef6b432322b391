"""`unetpp predict` with images or outputs in buckets, or on a cluster: checks, prediction and messages."""

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.console.progress import watched
from pipelines.core.sections.ingest import S3
from pipelines.core.temporary_folders import scratch
from pipelines.prediction.addresses import Item, Stores, check_address, find_objects, is_address, item_of, s3_settings
from pipelines.prediction.carried import carry, settle
from pipelines.prediction.images import find_images, searched
from pipelines.prediction.measurements import write_tables
from pipelines.prediction.opening import Asked, as_seen, find_model, open_model
from pipelines.prediction.outputs import Outputs
from pipelines.prediction.transfers import predicted
from pipelines.prediction.work import Work, plan, read_record
from unetpp.engines.family import Family
from unetpp.errors import UserError
from unetpp.images.frame import Size
from unetpp.images.pictures import picture_size
from unetpp.inference.tiles import TILE_PX
from unetpp.threads import chosen_threads

TOLD = 100  # failed images that are named


def predict_remotely(
    patterns: Sequence[str],
    model: str,
    asked: Asked,
    out: str,
    outputs: Outputs,
    overwrite: bool = False,
    threads: int | None = None,
    ray: str | None = None,
) -> None:
    """Predict images from buckets and from this machine, here or on a cluster, into a folder or a bucket.

    Args:
        patterns: s3://bucket/prefix (searched recursively) or the address of an object; others as for `find_images`.
        threads: number of threads that compute; on a cluster per task, one by default.
        ray: None: this process predicts. "": Ray tasks, on the cluster that RAY_ADDRESS names or on all cores of this
            machine. host:port: Ray tasks on that cluster.

    Raises:
        UserError: no images, two images of the same name, existing files in the way, a store or cluster that does not
            answer; or images that could not be predicted, after all others were.
    """
    asked.check()
    if ray is not None and (address := ray or os.environ.get("RAY_ADDRESS")):
        os.environ["RAY_ADDRESS"] = check_ray(address)
    s3 = s3_settings()
    if is_address(out):
        check_address(out)
    else:
        out = os.path.abspath(out)  # valid in every process, whatever its working folder
    items, problems = _find(patterns, out, s3)
    family = find_model(model)
    outputs = outputs.of(family.about)
    outputs.check(family.about)
    work = Work(out, s3, outputs, {})
    if not overwrite:
        asked = _as_before(asked, family, read_record(work.place()))
    size = _first_size(items, family, work)
    threads = threads or (chosen_threads() if ray is None else 1)
    with ExitStack() as stack:
        opened = open_model(family, asked, size, threads)
        print(f"predicting with {opened.said}", flush=True)
        work = replace(work, record={"format": 1, **opened.how, "save": list(outputs.save)})
        todo = plan(items, family.about, work, overwrite)
        if len(todo) < len(items):
            print(f"{len(items) - len(todo)} of {len(items)} images are already done", flush=True)
        if ray is None or not todo:
            results = predicted(todo, opened, work, max(1, threads // 4))
        else:
            from pipelines.prediction.ray_tasks import predict_on_ray  # late: it needs Ray

            results = predict_on_ray(todo, carry(family, asked, opened, size), work, threads)
        stack.enter_context(closing(results))  # pyright: ignore[reportArgumentType] - both are generators
        results = watched(results, "predicting, images", len(todo))
        failed = {item.stem: why for item, why in results if why}
    if "measurements" in outputs.save and not is_address(out):
        write_tables(Path(out), sorted({item.stem for item in items} - failed.keys()), family.about)
    print(f"wrote {', '.join(outputs.save)} for {len(todo) - len(failed)} images to {out}")
    if broken := problems + sorted(failed.values()):
        more = f"\nand {len(broken) - TOLD} more" if len(broken) > TOLD else ""
        raise UserError(
            f"{len(broken)} of {len(todo) + len(problems)} images, links or folders could not be predicted:\n"
            + "\n".join(broken[:TOLD])
            + more
        )


def _as_before(asked: Asked, family: Family, record: dict[str, Any] | None) -> Asked:
    """The engine and depth of the first run, so that a rerun, perhaps on another machine, does not choose again."""
    if record is None or record.get("model") != family.about.sha256:
        return asked
    if asked.max_latency_ms is not None:
        return settle(family, asked, record)
    return replace(asked, engine=record["engine"]) if asked.engine == "auto" else asked


def _first_size(items: Sequence[Item], family: Family, work: Work) -> Size:
    """(height, width) of the first image as the network sees it; engine and depth are chosen for this size."""
    try:
        with scratch() as folder:
            image = items[0].fetch(folder / "first", Stores(work.s3).of(items[0]))
            size = picture_size(image, work.outputs.limits)
    except (UserError, OSError):  # reported when the image is read
        return TILE_PX, TILE_PX
    return as_seen(items[0].address, size, family.about)


def _find(patterns: Sequence[str], out: str, s3: S3) -> tuple[list[Item], list[str]]:
    """All images that the patterns name, and a message for each path that is not a readable file or folder."""
    items: dict[str, Item] = {}
    problems: list[str] = []
    for address in filter(is_address, patterns):
        if f"{out.rstrip('/')}/".startswith(f"{address.rstrip('/')}/"):
            raise UserError(f"{out}: this output lies in {address}, which is read: choose a place outside it")
        items |= {item.address: item for item in find_objects(address, s3)}
    if local := [pattern for pattern in patterns if not is_address(pattern)]:
        files, problems = find_images(local)
        for folder in map(os.path.abspath, searched(local)):
            if f"{out}/".startswith(f"{folder}/"):
                raise UserError(f"{out}: this output lies in {folder}, which is read: choose a place outside it")
        items |= {str(file): item_of(Path(os.path.abspath(file))) for file in files}
    first: dict[str, Item] = {}
    for item in items.values():
        other = first.setdefault(item.stem, item)
        if other is not item:
            raise UserError(
                f"images of the same name would overwrite each other's mask: {other.address}, {item.address}; predict "
                "them into different places"
            )
    return list(items.values()), problems


def check_ray(address: str) -> str:
    """Check the address of a Ray cluster, and return it.

    Raises:
        UserError: not an address that Ray takes.
    """
    if re.match("https?://", address):
        raise UserError(
            f"--ray {address}: found the address for jobs; expected the host:port of the cluster's head (port 6379). "
            f"From outside the cluster, submit a job: ray job submit --address {address} -- unetpp predict s3://... "
            "--out s3://... --ray"
        )
    if not re.fullmatch(r"[\w.-]+:\d+|auto", address):
        raise UserError(
            f"--ray {address}: expected the host:port of the cluster's head (port 6379), or --ray without a value for "
            "the cluster of RAY_ADDRESS, or else all cores of this machine; put --ray after the images"
        )
    return address
