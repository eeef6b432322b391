"""`unetpp predict`: masks, and what else is asked for, of each image, by a trained model or a registered one."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

from pipelines.console.progress import watched
from pipelines.core.outputs import check_outputs
from pipelines.prediction.flow import write_all
from pipelines.prediction.images import find_images, searched
from pipelines.prediction.measurements import COUNTS, OBJECTS, write_tables
from pipelines.prediction.opening import Asked, as_seen, find_model, open_model
from pipelines.prediction.outputs import LIMITS, Outputs
from pipelines.prediction.record import Facts, Record, facts_of
from unetpp.errors import UserError
from unetpp.images.frame import Size
from unetpp.images.pictures import Limits, picture_size
from unetpp.inference.symmetric import Symmetries
from unetpp.inference.tiles import TILE_PX
from unetpp.models.about import About
from unetpp.threads import chosen_threads

DEFAULT = Outputs((), LIMITS)


def predict(
    patterns: list[str],
    model: str,
    depth: int | Literal["auto"] | None,
    out: Path,
    heads: str | None = None,
    overwrite: bool = False,
    *,
    outputs: Outputs = DEFAULT,
    engine: str = "auto",
    tta: Symmetries = "none",
    max_latency_ms: float | None = None,
    threads: int | None = None,
) -> None:
    """Write what is asked for of each image into `out`; a broken image is named and the others are done.

    What an earlier call wrote of the same images in the same way stays as it is.

    Args:
        depth, heads, engine, tta, max_latency_ms: as of `Asked`.
        overwrite: write all again, and replace files in the way; one that is an image to be read never.
        threads: that compute; by default those of this process.

    Raises:
        UserError: no image, no model, two images of one name, files in the way, or images that could not be predicted.
    """
    asked = Asked(depth, heads, engine, tta, max_latency_ms)
    asked.check()
    images, broken = find_images(patterns)
    stems = _stems(images)
    family = find_model(model)
    about = family.about
    outputs = outputs.of(about)
    outputs.check(about)
    tiffs = {image for image in images if outputs.is_tiff_of_rows(image)}
    files = {image: outputs.paths(about, out, stem, image in tiffs) for image, stem in stems.items()}
    tables = [out / OBJECTS, out / COUNTS] if "measurements" in outputs.save else []
    check_outputs(
        files=[*chain.from_iterable(files.values()), *tables],
        inputs=[*images, *searched(patterns), Path(model)],
        overwrite=overwrite,
    )
    threads = threads or chosen_threads()
    opened = open_model(family, asked, _first_size(images, about, outputs.limits), threads)
    print(f"predicting with {opened.said}", flush=True)
    facts, record = _facts(images), Record(out, opened.how | {"save": outputs.save})
    done = [] if overwrite else [image for image, seen in facts.items() if record.is_done(stems[image], seen)]
    todo = dict(stems)
    for image in done:
        del todo[image]
    for image, stem in todo.items():
        record.begin(stem, files[image])
    results = write_all(opened.predictor, todo, out, outputs, opened.streams, max(1, threads // 4))
    for image, result in watched(results, "predicting, images", len(todo)):
        if isinstance(result, UserError):
            broken.append(str(result))
            continue
        done.append(image)
        if image in facts:
            record.add(stems[image], facts[image], result)
    if "measurements" in outputs.save:
        write_tables(out, sorted(stems[image] for image in done), about)
    _tell(len(done), len(stems) - len(todo), opened.predictor.about, outputs, out)
    if broken:
        raise UserError(
            f"{len(broken)} of {len(done) + len(broken)} images, links or folders could not be predicted:\n"
            + "\n".join(sorted(broken))
        )


def _stems(images: Sequence[Path]) -> dict[Path, str]:
    """The name in the folder of outputs of each image."""
    names = [image.stem for image in images]
    if len(set(names)) < len(names):
        twice = sorted(str(image) for image in images if names.count(image.stem) > 1)
        raise UserError(
            f"images of the same name would overwrite each other's mask: {', '.join(twice[:6])}; predict "
            "them into different folders"
        )
    return dict(zip(images, names, strict=True))


def _facts(images: Iterable[Path]) -> Mapping[Path, Facts]:
    found = {}
    for image in images:
        try:
            found[image] = facts_of(image)
        except OSError:
            continue  # who reads it will say so
    return found


def _first_size(images: Sequence[Path], about: About, limits: Limits) -> Size:
    """Of the first image that can be read, as the network sees it: by it the engine and the depth are chosen."""
    for image in images:
        try:
            size = picture_size(image, limits)
        except (UserError, OSError):
            continue
        return as_seen(image, size, about)
    return TILE_PX, TILE_PX


def _tell(num: int, num_before: int, about: About, outputs: Outputs, out: Path) -> None:
    """How many masks were written where, and what their values mean."""
    before = f", {num_before} of them before" if num_before else ""
    others = [kind for kind in outputs.save if kind != "mask"]
    if others:
        print(f"wrote {', '.join(others)} for {num} images to {out}{before}")
    if "mask" not in outputs.save:
        return
    if about.multilabel:
        folders = ", ".join(str(out / label) for label in about.classes)
        print(f"wrote {num} masks of each label to {folders}: 255 where the label is{before}")
    elif about.num_classes == 1 or about.names == ["background", "1"]:
        name = "foreground" if about.classes == ["1"] else about.classes[0]
        print(f"wrote {num} masks to {out}: {name} where not 0{before}")
    else:
        values = ", ".join(f"{index} {name}" for index, name in enumerate(about.names))
        print(f"wrote {num} masks to {out}: {values}{before}")
