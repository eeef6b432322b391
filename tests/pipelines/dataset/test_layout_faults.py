"""The table of faults of a set: pairs, classes, pages, COCO, groups and splits; each is named, or read by a policy."""

import json
import os
import shutil

import numpy as np
import pytest

from pipelines.core.sections.prepare import Prepare
from pipelines.dataset.splits import find_split, place, position
from tests.pipelines.dataset.faulty_sets import PREPARE, SIDE, Faults, FaultySet, block, check, grey, noise, with_params
from tests.unetpp.images.tiffs import write_tiff

fault = Faults()


@fault("error", r"masks/0000\.png: found a mask that looks like a picture, and 0000\.png in images/ looks")
def images_and_masks_swapped(faulty):
    (faulty.source / "images").rename(faulty.source / "other")
    (faulty.source / "masks").rename(faulty.source / "images")
    (faulty.source / "other").rename(faulty.source / "masks")


@fault("quarantine", r"^masks/odd\.png: found a mask that looks like a pict.*the two swapped\?.*: exchange the two$")
def one_image_and_its_mask_swapped(faulty):
    faulty.image("odd.png", block(255))
    faulty.mask("odd.png", noise("odd", 1))


@fault("quarantine", r"^masks/odd\.png: found a mask of 24x23 px for an image of 24x24 px; .*: export")
def mask_off_by_one_pixel(faulty):
    faulty.mask("odd.png", block()[1:])


@fault("policy", "any non-zero value is then foreground")
def mask_of_0_and_255_where_there_is_one_class(faulty):
    faulty.mask("odd.png", block(255))
    faulty.expect(noise("odd"), block(1))


@fault("quarantine", r"^masks/odd\.png: found the mask values 0 and 255 only.*: set prepare\.num_classes to 1")
def mask_of_0_and_255_where_there_are_classes(faulty):
    faulty.good(num_classes=3)
    faulty.mask("odd.png", block(255))
    return with_params(num_classes=3)


@fault("quarantine", r"^masks/odd\.png: found the mask value 7; expected 0 to 2: correct the mask")
def mask_value_off_the_list(faulty):
    faulty.good(num_classes=3)
    faulty.mask("odd.png", block(7))
    return with_params(num_classes=3)


@fault("policy", "an image without objects")
def empty_mask(faulty):
    faulty.mask("odd.png", block(0))
    faulty.expect(noise("odd"), block(0))


@fault(
    "quarantine",
    r"^images/Odd\.png: names differ only by case, suffix or Unicode form: .*images/odd\.png: rename one",
)
def ids_that_differ_by_case(faulty):
    faulty.image("Odd.png", noise("another"))


@fault("policy", "are written as `%E9`")
def names_of_other_systems(faulty):
    """In Latin-1, in one form of Unicode for the image and another for the mask, and as long as a disk takes."""
    for image, mask, id in (
        (os.fsdecode(b"caf\xe9"), os.fsdecode(b"caf\xe9"), "caf%E9"),
        ("e\u0301", "\u00e9", "\u00e9"),
        ("\u00e5/1", "a\u030a/1", "\u00e5/1"),
        ("x" * 246, "x" * 246, "x" * 246),
        (" a \n", " a \n", " a \n"),
    ):
        faulty.image(f"{image}.png", noise(id))
        faulty.mask(f"{mask}.png", block())
        faulty.expect(noise(id), block(), id)


@fault("error", r"no_foreground: found no foreground pixel in test \(\d+ images\); .*prepare\.no_foreground to allow$")
def nothing_to_find_in_test(faulty):
    for path in (faulty.source / "masks").iterdir():
        if find_split(position(PREPARE.salt, path.stem), PREPARE.shares)[0] == "test":
            faulty.mask(path.name, block(0))


@fault("quarantine", r"^images/odd\.png: no mask masks/odd\.png: add it or remove the image")
def image_without_a_mask(faulty):
    (faulty.source / "masks/odd.png").unlink()


@fault("quarantine", r"^images/odd\.tif: found 3 pages; expected one: save each page .*prepare\.pages to slices")
def volume_where_pages_are_refused(faulty):
    write_tiff(faulty.replace_image("odd.tif", noise("odd")), *(noise(f"odd{n}") for n in range(3)))


@fault("policy", "each page is a sample")
def volume_where_pages_are_slices(faulty):
    write_tiff(faulty.replace_image("odd.tif", noise("odd")), *(noise(f"odd{n}", 1, np.uint16) for n in (1, 2, 3)))
    write_tiff(faulty.replace_mask("odd.tif", block()), block(5), block(0), block(9))
    for page, value in ((1, 1), (2, 0), (3, 1)):
        faulty.expect(grey(noise(f"odd{page}", 1, np.uint16)), block(value), id=f"odd@{page:04}")
    return with_params(pages="slices")


@fault("quarantine", r"^masks/odd\.tif: found 2 pages for the 3 pages of odd\.tif; .*: export")
def volume_with_fewer_masks_than_pages(faulty):
    write_tiff(faulty.replace_image("odd.tif", noise("odd")), *(noise(f"odd{n}", 1) for n in range(3)))
    write_tiff(faulty.replace_mask("odd.tif", block()), block(), block())
    return with_params(pages="slices")


@fault("policy", "the later class wins")
def classes_that_overlap(faulty):
    whole, part = block(255), block(255)
    part[:9] = 0
    for id in [path.stem for path in (faulty.source / "images").iterdir()]:
        faulty.mask(f"cell/{id}.png", whole)
        faulty.mask(f"nucleus/{id}.png", part)
        (faulty.source / f"masks/{id}.png").unlink()
    faulty.expect(noise("odd"), np.maximum((whole > 0) * 1, (part > 0) * 2).astype(np.uint8))
    return with_params(num_classes=3, classes=["cell", "nucleus"])


@fault("error", r"found a folder of masks for each of nucleus; .*: set prepare\.classes=")
def classes_that_are_not_named(faulty):
    (faulty.source / "masks").rename(faulty.source / "nucleus")
    (faulty.source / "masks").mkdir()
    (faulty.source / "nucleus").rename(faulty.source / "masks/nucleus")


def coco(faulty: FaultySet, **odd) -> None:
    """The good pairs as a COCO set, in which the entry and the only annotation of `odd` are changed."""
    shutil.rmtree(faulty.source / "masks")
    names = sorted(path.name for path in (faulty.source / "images").iterdir())
    images = [{"id": n, "file_name": name, "width": SIDE, "height": SIDE} for n, name in enumerate(names)]
    square = [[6, 4, 17, 4, 17, 15, 6, 15]]
    annotations = [{"id": n, "image_id": n, "category_id": 1, "segmentation": square} for n in range(len(names))]
    for row in (images[-1], annotations[-1]):
        row |= {key: value for key, value in odd.items() if key in row}
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "nucleus"}]}
    (faulty.source / "annotations.json").write_text(json.dumps(content))


@fault("policy", "polygons or run lengths")
def coco_set(faulty):
    faulty.expect(noise("odd"), block())
    coco(faulty)


@fault("quarantine", r"^annotations\.json: found annotation 40 of odd\.png with no segmentation.*: correct")
def coco_annotation_without_a_segmentation(faulty):
    coco(faulty, segmentation=[])


@fault("quarantine", r"^annotations\.json: found annotations for 9\.0x24 px of odd\.png of 24x24 px", nightly=True)
def coco_annotations_of_another_size(faulty):
    coco(faulty, width=9.0)


@fault("quarantine", r"^annotations\.json: found annotation 40 of odd\.png with coordinates from 0 to 1, which are fr")
def coco_polygons_in_shares_of_the_image(faulty):
    coco(faulty, segmentation=[[0.2, 0.2, 0.7, 0.2, 0.7, 0.7]])


@fault("error", r"annotations\.json: found 1 categories; expected 2, as prepare\.num_classes = 3")
def coco_categories_that_are_not_the_classes(faulty):
    coco(faulty)
    return with_params(num_classes=3)


def with_groups(**changes) -> Prepare:
    return with_params(groups=PREPARE.groups.model_dump() | changes)


@fault("policy", "join one group")
def the_same_picture_under_two_names(faulty):
    for number in range(20):  # some would else stand in two splits
        faulty.image(f"{number:04} again.png", noise(f"{number:04}"))
        faulty.mask(f"{number:04} again.png", block())
        faulty.together.append((f"{number:04}", f"{number:04} again"))


@fault("policy", "turned, mirrored")
def the_same_picture_mirrored_and_dimmed_under_another_name(faulty):
    for number in range(20):
        faulty.image(f"{number:04} again.png", np.ascontiguousarray(noise(f"{number:04}")[::-1] // 8))
        faulty.mask(f"{number:04} again.png", np.ascontiguousarray(block()[::-1]))
        faulty.together.append((f"{number:04}", f"{number:04} again"))


@fault("policy", "without contrast matches no other")
def many_black_pictures(faulty):
    for number in range(5):
        faulty.image(f"black{number}.png", np.zeros((SIDE, SIDE, 3), np.uint8))
        faulty.mask(f"black{number}.png", block(0))
    faulty.apart += [("black0", f"black{number}") for number in range(1, 5)]


@fault("error", r"(?s)found \d+ groups or pairs of images that are in two splits; .*are the same pixels")
def the_same_picture_in_two_splits(faulty):
    the_same_picture_under_two_names(faulty)
    return with_params(near_duplicates=None)


@fault("policy", "stays together whatever")
def a_patient_of_many_images(faulty):
    for number in range(30):
        faulty.image(f"p7_{number}.png", noise(f"p7_{number}"))
        faulty.mask(f"p7_{number}.png", block())
        faulty.together.append(("p7_0", f"p7_{number}"))
    return with_groups(pattern=r"^(p\d+|.*)")


@fault("error", r"the group 'p7' of 30 images is in .*: p7_\d+ in \w+, p7_\d+ in \w+")
def a_patient_in_two_splits_by_a_mistake_in_the_rule(faulty):
    params = a_patient_of_many_images(faulty)
    faulty.patch.setattr(
        "pipelines.prepare.place", lambda members, params, **_: place([[str(n)] for n in range(len(members))], params)
    )
    return params


@fault("error", r"patients\.csv: line 3: found '0001' in group 'p2' and earlier in 'p1'; expected one group per id")
def an_image_of_two_patients(faulty):
    (faulty.folder / "patients.csv").write_text("id,group\n0001,p1\n0001,p2\n")
    return with_groups(table=str(faulty.folder / "patients.csv"))


@fault("error", r"patients\.csv: found no row for 2 of 41 ids: 0039, odd; expected a row id,group for every image")
def a_table_without_some_of_the_ids(faulty):
    rows = [f"{number:04},p{number // 3}\n" for number in range(39)]
    (faulty.folder / "patients.csv").write_text("id,group\n" + "".join(rows))
    return with_groups(table=str(faulty.folder / "patients.csv"))


@fault("error", r"prepare\.groups\.pattern: found the id 'odd', in which .* matches nothing; expected a group for ev")
def an_id_that_the_pattern_does_not_match(_faulty):
    return with_groups(pattern=r"^(\d\d)")


@pytest.mark.parametrize(("make", "outcome", "message"), fault.rows)
def test_a_fault_of_the_set_is_named_or_read_by_policy(make, outcome, message, tmp_path, monkeypatch):
    check(make, outcome, message, FaultySet(tmp_path, monkeypatch))
