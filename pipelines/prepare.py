"""Stage prepare: check, decode and split raw images and masks, set aside what is broken."""

import argparse
import csv
import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np

from pipelines.files import replacing, sha256, write_json
from pipelines.layouts import Problem, Sample, find_samples
from pipelines.params import Prepare, Shares, load_params
from pipelines.stage import run_command
from unetpp.data import SplitWriter
from unetpp.errors import UserError
from unetpp.images import convert, decode_image, decode_mask

SPLITS = ("train", "val", "test")
# In 547 images of BBBC038 the darkest bright-field or stained one has a median brightness of 0.52 and the
# brightest fluorescence one 0.2; the palest stain has a mean chroma of 0.047, and grey images have 0.
DARK = 0.35
COLOURED = 0.03
# Below this number a kind may well miss a split by chance.
KIND_MATTERS = 5


def find_kind(image: np.ndarray) -> str:
    """The kind of microscopy, a function of the decoded image (H, W, 3) uint8 or uint16 alone.

    "fluorescence": the median brightness (mean of the channels) is below 0.35 of the image's own bright end
    for uint16, of the full scale for uint8. Of the others, "tissue" has a mean chroma (largest less smallest
    channel) above 0.03, "bright-field" has not.
    """
    pixels = image.astype(np.float32)
    # Cameras of 12 and 14 bits fill the lower end of 16: there, full scale says nothing about bright or dark.
    pixels /= 255 if image.dtype == np.uint8 else max(1.0, float(np.percentile(pixels, 99.5)))
    if np.median(pixels.mean(axis=2)) < DARK:
        return "fluorescence"
    return "tissue" if (pixels.max(axis=2) - pixels.min(axis=2)).mean() > COLOURED else "bright-field"


def find_split(id: str, kind: str, salt: str, shares: Shares) -> str:
    """train, val or test: a function of the sample alone, so that adding files moves none."""
    digest = hashlib.sha256("\0".join((salt, kind, id)).encode()).digest()
    u = int.from_bytes(digest[:8], "big") / 2**64  # uniform in [0, 1)
    if u < shares.train:
        return "train"
    return "val" if u < shares.train + shares.val else "test"


def resize(image: np.ndarray, mask: np.ndarray, size: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, C) and mask (H, W) uint8 to size x size by one geometry.

    OpenCV's nearest neighbour samples the corner of a pixel, and would lay a smaller mask up to half a pixel
    beside its image. So the mask is resized as its image is, as a share of foreground (or of each class), and
    then decided: at least one half, or the largest share.
    """
    height, width = mask.shape
    if (height, width) == (size, size):
        return image, mask
    # One choice for both. Area averages all the pixels that fall into one; it cannot enlarge.
    interpolation = cv2.INTER_AREA if height >= size and width >= size else cv2.INTER_LINEAR

    def scaled(plane: np.ndarray) -> np.ndarray:
        return cv2.resize(plane, (size, size), interpolation=interpolation)

    small = scaled(image).reshape(size, size, image.shape[2])  # OpenCV drops an axis of 1
    if num_classes == 1:
        return small, (scaled(mask.astype(np.float32)) >= 0.5).astype(np.uint8)
    present = np.unique(mask)
    shares = np.stack([scaled((mask == value).astype(np.float32)) for value in present])  # (K, H, W)
    return small, present[shares.argmax(axis=0)]


def load_sample(sample: Sample, params: Prepare) -> tuple[str, np.ndarray, np.ndarray]:
    """Decode, check and resize a sample: kind, image (H, W, C) uint8 or uint16, mask (H, W) uint8.

    Raises:
        UserError: a file that cannot be decoded, sizes that differ, or a value that is no class.
    """
    image = decode_image(sample.image, channels=3)
    kind = find_kind(image)
    mask = np.zeros(image.shape[:2], np.uint8)
    for path in sample.masks:
        values = decode_mask(path)
        if values.shape != mask.shape:
            found, wanted = ("x".join(map(str, reversed(array.shape))) + " px" for array in (values, mask))
            raise UserError(
                f"{path}: found a mask of {found} for an image of {wanted}; "
                f"expected the same size: export the mask of {sample.image.name} again"
            )
        if params.num_classes == 1:
            mask |= (values > 0).astype(np.uint8)
        elif values.max() >= params.num_classes:
            raise UserError(
                f"{path}: found the mask value {values.max()}; expected 0 to {params.num_classes - 1}: "
                "correct the mask, raise prepare.num_classes, or set it to 1 where values number objects"
            )
        else:
            mask = np.maximum(mask, values.astype(np.uint8))
    image = convert(image, params.channels)
    if params.size is not None:
        image, mask = resize(image, mask, params.size, params.num_classes)
    return kind, image, mask


def prepare(params: Prepare, raw: Path, out: Path) -> dict:
    """Write an Arrow file a split, split.csv, quarantine.csv and manifest.json; return the manifest.

    The folder `out` is written whole or not at all, and the same raw files give the same bytes.

    Raises:
        UserError: no samples, more broken ones than prepare.max_quarantined, or an empty split.
    """
    if not (raw / "manifest.json").is_file():
        raise UserError(f"{raw}: found no manifest.json; expected what stage ingest writes: run `dvc repro ingest`")
    samples, problems = find_samples(raw)
    kinds: dict[str, Counter] = {split: Counter() for split in SPLITS}
    rows: list[tuple[str, str, str]] = []
    foreground = pixels = 0
    with replacing(out) as partial:
        partial.mkdir()
        with ExitStack() as stack:
            writers = {split: stack.enter_context(SplitWriter(partial / f"{split}.arrow")) for split in SPLITS}
            for sample, kind, image, mask in _loaded(samples, params, raw, problems):
                split = find_split(sample.id, kind, params.salt, params.shares)
                writers[split].add(sample.id, kind, image, mask)
                rows.append((sample.id, kind, split))
                kinds[split][kind] += 1
                if split == "train":
                    pixels += mask.size
                    foreground += int(np.count_nonzero(mask))
        _check_quarantine(problems, len(rows), params.max_quarantined, raw)
        _check_splits(kinds, params)
        _write_csv(partial / "split.csv", ("id", "kind", "split"), rows)
        quarantined = sorted((problem.id, problem.file, problem.reason) for problem in problems)
        _write_csv(partial / "quarantine.csv", ("id", "file", "reason"), quarantined)
        manifest = {
            "size": params.size,
            "channels": params.channels,
            "num_classes": params.num_classes,
            "splits": {
                split: {
                    "num_images": kinds[split].total(),
                    "sha256": sha256(partial / f"{split}.arrow"),
                    "kinds": dict(sorted(kinds[split].items())),
                }
                for split in SPLITS
            },
            "quarantined": len(problems),
            "raw_sha256": sha256(raw / "manifest.json"),
            "foreground_share": foreground / pixels,  # of the train pixels
            "class_pixels": writers["train"].class_pixels,
        }
        write_json(partial / "manifest.json", manifest)
    return manifest


def _loaded(
    samples: list[Sample], params: Prepare, raw: Path, problems: list[Problem]
) -> Iterator[tuple[Sample, str, np.ndarray, np.ndarray]]:
    """Samples one at a time, ready to be written; what is broken goes to `problems` instead."""
    for sample in samples:
        try:
            yield sample, *load_sample(sample, params)
        except UserError as error:
            # The message begins with the file; the table has a column for it.
            message = str(error)
            file = next(path for path in (sample.image, *sample.masks) if message.startswith(f"{path}: "))
            reason = message.removeprefix(f"{file}: ")
            problems.append(Problem(sample.id, file.relative_to(raw).as_posix(), reason))


def _check_quarantine(problems: list[Problem], num_good: int, limit: float, raw: Path) -> None:
    # A sample counts once, however many of its files are broken.
    num_broken = len({problem.id for problem in problems})
    share = num_broken / max(1, num_broken + num_good)
    if share <= limit and num_good:
        return
    first = sorted(problems, key=lambda problem: (problem.id, problem.file))[:5]
    more = [f"  and {len(problems) - len(first)} more"] if len(problems) > len(first) else []
    lines = [f"  {problem.file}: {problem.reason}" for problem in first] + more
    raise UserError(
        f"{raw}: {num_broken} of {num_broken + num_good} samples are broken ({share:.0%}); expected at most "
        f"prepare.max_quarantined = {limit:.0%}: correct these files, or raise the limit\n" + "\n".join(lines)
    )


def _check_splits(kinds: dict[str, Counter], params: Prepare) -> None:
    counts = {split: kinds[split].total() for split in SPLITS}
    empty = [split for split in SPLITS if not counts[split]]
    if empty:
        found = ", ".join(f"{count} for {split}" for split, count in counts.items())
        raise UserError(
            f"prepare.shares: found {found}; expected at least one image for each: add images, choose "
            f"another prepare.salt than {params.salt!r}, or other shares"
        )
    for kind, count in sorted(sum(kinds.values(), Counter()).items()):
        missing = [split for split in ("val", "test") if not kinds[split][kind]]
        if missing and count >= KIND_MATTERS:
            print(
                f"warning: none of the {count} {kind} images is in {' or '.join(missing)}; "
                "another prepare.salt is another split"
            )


def _write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[str, str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", type=Path, required=True, help="folder that stage ingest wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the prepared splits")
    arguments = parser.parse_args()
    manifest = prepare(load_params().prepare, arguments.raw, arguments.out)
    for split, found in manifest["splits"].items():
        kinds = ", ".join(f"{count} {kind}" for kind, count in found["kinds"].items())
        print(f"prepare: {split:<5} {found['num_images']:>5} images: {kinds}")
    print(f"prepare: {manifest['quarantined']} files set aside, see {arguments.out / 'quarantine.csv'}")
    print(f"prepare: {manifest['foreground_share']:.1%} of the train pixels are foreground")


if __name__ == "__main__":
    run_command(main)
