"""Prepares samples of raw data: decodes, checks, describes and resizes them, in several processes."""

import functools
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.console.progress import watched
from pipelines.core.sections.prepare import Prepare
from pipelines.core.worker_pool import Died, answers
from pipelines.dataset.kinds import BY_IMAGE, find_kind
from pipelines.dataset.layouts import Problem, Sample
from pipelines.dataset.mask_files import Labels, limits_of, read_labels
from pipelines.dataset.near_duplicates import Look, look_at
from pipelines.dataset.sample_stats import Facts, describe
from unetpp.data.instances import fit_numbers, pack
from unetpp.data.resized import resize_sample
from unetpp.errors import FileError, UserError
from unetpp.images.decode import to_array
from unetpp.images.pictures import Picture, read_picture
from unetpp.images.pixels import convert, shown
from unetpp.threads import num_cores

NO_INSTANCES = np.zeros(0, np.uint8)


class Loaded(NamedTuple):
    """A sample as it is written for training, and its facts as in the source."""

    kind: str  # by the image's looks; empty if prepare.kinds does not derive it from the image
    image: np.ndarray  # (H, W, C) uint8 or uint16
    mask: np.ndarray  # (H, W) uint8
    instances: np.ndarray  # (n,) uint8: packed object numbers of the mask, empty if it has none
    facts: Facts
    look: Look


def load_sample(sample: Sample, params: Prepare) -> Loaded:
    """Decode, check, describe and resize a sample.

    Raises:
        FileError: a file cannot be decoded, or image and mask do not match.
    """
    picture = read_picture(sample.image, sample.page, limits_of(params))
    header, image = picture.header, _decoded(picture, params)
    del picture  # it may be as large as the image
    kind = find_kind(shown(image), params.kinds) if params.kinds in BY_IMAGE else ""
    look = look_at(shown(image))
    labels = read_labels(sample, image, params)
    seen, mask = convert(image, params.channels), labels.mask
    if params.frame:
        seen, mask = resize_sample(seen, mask, params.frame, params.num_classes, params.multilabel)
    facts = describe(header, image, labels, mask, params.multilabel, params.background)
    return Loaded(kind, seen, mask, _pack(labels, mask, params) if facts.numbered else NO_INSTANCES, facts, look)


def _pack(labels: Labels, mask: np.ndarray, params: Prepare) -> np.ndarray:
    return np.frombuffer(pack(fit_numbers(labels.numbers, mask, params.multilabel)), np.uint8)


def _decoded(picture: Picture, params: Prepare) -> np.ndarray:
    """(H, W, C): grey as RGB too, from which kinds and looks are derived; of several channels these."""
    return to_array(picture, 3 if params.channels == 1 else params.channels)


def load_all(
    samples: list[Sample], params: Prepare, raw: Path, problems: list[Problem]
) -> Iterator[tuple[int, Loaded]]:
    """(index, sample) as several processes decode them; broken ones go to `problems` instead."""
    load = functools.partial(_load, params)
    died = []
    num_processes = min(params.num_workers, num_cores())
    for index, answer in watched(answers(load, samples, num_processes), "decoding images", len(samples)):
        if isinstance(answer, Died):
            died.append(index)
        elif isinstance(answer, Loaded):
            yield index, answer
        else:
            problems.append(Problem.of(answer, samples[index].id, raw))
    # If a process was killed, another sample may have used up the memory. On its own, this sample is the cause.
    for index in sorted(died):
        answer = _load_alone(load, samples[index])
        if isinstance(answer, Loaded):
            yield index, answer
        else:
            problems.append(Problem.of(answer, samples[index].id, raw))


def load_full(samples: list[Sample], params: Prepare, numbered: bool) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
    """(index, image (H, W, C), mask (H, W) and instances) of samples that `load_all` has loaded, at their own sizes.

    Args:
        numbered: masks number objects, at least in some samples.

    Raises:
        UserError: a file changed in between.
    """
    load = functools.partial(_load_full, params, numbered)
    num_processes = min(params.num_workers, num_cores())
    for index, answer in watched(answers(load, samples, num_processes), "decoding at full size, images", len(samples)):
        if isinstance(answer, Died | FileError):
            raise UserError(
                f"{samples[index].image}: this image or its mask could be read before and now cannot "
                f"({answer.how if isinstance(answer, Died) else answer}); do not change the files, and rerun the stage"
            )
        yield index, answer


def _load_full(params: Prepare, numbered: bool, sample: Sample) -> tuple[np.ndarray, ...] | FileError:
    try:
        image = _decoded(read_picture(sample.image, sample.page, limits_of(params)), params)
        labels = read_labels(sample, image, params)
        instances = _pack(labels, labels.mask, params) if numbered else NO_INSTANCES
        return convert(image, params.channels), labels.mask, instances
    except FileError as error:
        return error


def _load(params: Prepare, sample: Sample) -> Loaded | FileError:
    try:
        return load_sample(sample, params)
    except FileError as error:
        return error


def _load_alone(load: Callable[[Sample], Loaded | FileError], sample: Sample) -> Loaded | FileError:
    [(_, answer)] = answers(load, [sample], 1)
    if not isinstance(answer, Died):
        return answer
    files = (sample.image, *sample.masks)
    parts = [replace(sample, masks=masks) for masks in ((), *((mask,) for mask in sample.masks))]
    with closing(answers(functools.partial(_try, load), parts, 1)) as tried:
        index = next((index for index, part in tried if isinstance(part, Died)), 0)
    return FileError(
        files[index],
        f"found a file that cannot be decoded (its process {answer.how}); expected one whose decoding ends and "
        "fits in memory",
        "fetch it again or remove it",
    )


def _try(load: Callable[[Sample], object], sample: Sample) -> None:
    """Only the survival of the process counts; a part of a sample may be wrong in many ways."""
    with suppress(Exception):
        load(sample)
