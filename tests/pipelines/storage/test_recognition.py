"""Layouts that a folder may have, by names alone: each is read by its templates, or refused with what was found."""

from pathlib import PurePosixPath

import pytest

from pipelines.core.sections import ingest
from pipelines.storage.naming.layout_names import choose
from pipelines.storage.naming.templates import Layout, find_files
from unetpp.errors import UserError


def spell(names: str, ids: str) -> list[PurePosixPath]:
    """A name a word, in which @ stands for each of the ids and ~ for a space."""
    spelled = (name.replace("@", id).replace("~", " ") for name in names.split() for id in ids.split())
    return [PurePosixPath(name) for name in dict.fromkeys(spelled)]


# Names, ids, the templates, the number of pairs; and what is said, or a sample's id.
LAYOUTS = {
    "as ever": ("images/@.png masks/@.png", "a b~2", "images/{id}", "masks/{id}", 2),
    "nested ids": ("images/day~1/@.JPG masks/day~1/@.PNG", "a b", "images/{id}", "masks/{id}", 2),
    "image and label": ("image/@.tif label/@.tif", "0 1 2", "image/{id}", "label/{id}", 3),
    "imgs": ("imgs/@.jpg masks/@.png", "a b", "imgs/{id}", "masks/{id}", 2),
    "wrapped, any case": ("set/v1/Images/@.JPG set/v1/GroundTruth/@.PNG", "a b", "Images/{id}", "GroundTruth/{id}", 2),
    "CVC": ("CVC/Original/@.tif CVC/Ground~Truth/@.tif", "1 2", "Original/{id}", "Ground Truth/{id}", 2),
    "Kvasir": ("K/K/images/@.jpg K/K/masks/@.jpg K/K/kavsir_bboxes.json", "c1 c2", "images/{id}", "masks/{id}", 2),
    "CamVid": (
        "train/@.jpg trainannot/@.png val/v@.jpg valannot/v@.png test/t@.jpg testannot/t@.png",
        "0001TP_006690 0001TP_006720",
        "{split}/{id}",
        "{split}annot/{id}",
        6,
    ),
    "folders of splits": (
        "Train/images/@.png Train/masks/@.png Test/images/@.png Test/masks/@.png",
        "a b",
        "{split}/images/{id}",
        "{split}/masks/{id}",
        4,
    ),
    "splits in folders": (
        "images/training/@.jpg annotations/training/@.png images/validation/@.jpg annotations/validation/@.png",
        "a b",
        "images/{split}/{id}",
        "annotations/{split}/{id}",
        4,
    ),
    "splits in names of folders": (
        "train_images/@.jpg train_masks/@.png test_images/@.jpg test_masks/@.png",
        "a b",
        "{split}_images/{id}",
        "{split}_masks/{id}",
        4,
    ),
    "suffixes": ("data/@.jpg data/@_mask.png", "a b~2", "{id}", "{id}_mask", 2),
    "suffixes in a folder beside": ("images/@.jpg masks/@_mask.png", "a b", "images/{id}", "masks/{id}_mask", 2),
    "a suffix of both": ("raw/@-img.png raw/@-seg.png", "a b", "{id}-img", "{id}-seg", 2),
    "satellites": ("train/@_sat.jpg train/@_mask.png", "7 8", "{id}_sat", "{id}_mask", 2),
    "prefixes": ("@.jpg mask_@.png", "a b", "{id}", "mask_{id}", 2),
    "prefixes of both": ("images/img@.jpg masks/lab@.png", "1 2", "images/img{id}", "masks/lab{id}", 2),
    "the format alone": ("@.jpg @.png", "a b", "{id}.jpg", "{id}.png", 2),
    "a folder a sample": ("@/image.png @/mask.png", "p1 p2", "{id}/image", "{id}/mask", 2),
    "ids over folders": ("k/T@/T@_1.tif k/T@/T@_1_mask.tif", "1 2", "{id}", "{id}_mask", 2),
    "further masks of an image": (
        "x_GT/benign/b~(@).png x_GT/benign/b~(@)_mask.png x_GT/benign/b~(@)_mask_1.png",
        "1 2",
        "{id}",
        "{id}_mask",
        2,
    ),
    "ISIC": (
        "ISIC_Training_Input/ISIC_@.jpg ISIC_Training_GroundTruth/ISIC_@_segmentation.png "
        "ISIC_Test_Input/ISIC_9@.jpg ISIC_Test_GroundTruth/ISIC_9@_segmentation.png",
        "0001 0002",
        "ISIC_{split}_Input/{id}",
        "ISIC_{split}_GroundTruth/{id}_segmentation",
        4,
    ),
    "Cityscapes": (
        "leftImg8bit/train/ulm/ulm_@_leftImg8bit.png gtFine/train/ulm/ulm_@_gtFine_labelIds.png "
        "gtFine/train/ulm/ulm_@_gtFine_color.png gtFine/train/ulm/ulm_@_gtFine_instanceIds.png "
        "leftImg8bit/val/bonn/bonn_@_leftImg8bit.png gtFine/val/bonn/bonn_@_gtFine_labelIds.png",
        "0_1 0_2",
        "leftImg8bit/{split}/{id}_leftImg8bit",
        "gtFine/{split}/{id}_gtFine_labelIds",
        4,
    ),
    "masks of several sorts": (
        "@.jpg @_labelIds.png @_color.png @_instanceIds.png",
        "a b",
        "{id}",
        "{id}_labelIds",
        2,
    ),
    "Pascal VOC": (
        "VOC/V/JPEGImages/@.jpg VOC/V/JPEGImages/x@.jpg VOC/V/SegmentationClass/@.png VOC/V/SegmentationObject/@.png",
        "1 2",
        "JPEGImages/{id}",
        "SegmentationClass/{id}",
        2,
    ),
    "Roboflow": (
        "train/@.jpg train/@_mask.png train/_classes.csv valid/@.jpg valid/@_mask.png",
        "a.rf.1 b.rf.2",
        "{split}/{id}",
        "{split}/{id}_mask",
        4,
    ),
    "DRIVE": (
        "D/training/images/2@_training.tif D/training/1st_manual/2@_manual1.gif D/training/mask/2@_training_mask.gif "
        "D/test/images/0@_test.tif D/test/1st_manual/0@_manual1.gif D/test/2nd_manual/0@_manual2.gif",
        "1 2",
        "{split}/images/{id}_{split}",
        "{split}/1st_manual/{id}_manual1",
        4,
    ),
    "Oxford pets": (
        "images/@.jpg annotations/trimaps/@.png",
        "Pug_1 Pug_2",
        "images/{id}",
        "annotations/trimaps/{id}",
        2,
    ),
    "one mask for several images": ("imgs/@_ch0.png imgs/@_ch1.png gt/@.png", "c1 c10", "imgs/{id}", "gt/{id}", 4),
    "thumbnails beside": ("images/@.jpg images/thumbs/@.jpg masks/@.png", "a b", "images/{id}", "masks/{id}", 2),
    "a volume and its labels": ("@-volume.tif @-labels.tif", "train", "{id}-volume", "{id}-labels", 1),
    "folders of which masks alone say it": ("set/x/@.jpg set/labels/@.png", "a b", "x/{id}", "labels/{id}", 2),
    "folders without a word, nested": ("land/@.jpg labels/@.png", "n/a n/b s/c", "land/{id}", "labels/{id}", 3),
    "Cityscapes with train ids": (
        "leftImg8bit/train/u/@_leftImg8bit.png leftImg8bit/val/u/@_leftImg8bit.png gtFine/train/u/@_gtFine_color.png "
        "gtFine/val/u/@_gtFine_color.png gtFine/train/u/@_gtFine_labelIds.png gtFine/val/u/@_gtFine_labelIds.png "
        "gtFine/train/u/@_gtFine_labelTrainIds.png gtFine/val/u/@_gtFine_labelTrainIds.png",
        "a b",
        "leftImg8bit/{split}/{id}_leftImg8bit",
        "gtFine/{split}/{id}_gtFine_labelTrainIds",
        4,
    ),
    "a folder of each patient": (
        "p01/images/@.png p01/masks/@.png p02/images/@.png p02/masks/@.png",
        "a b",
        "{folder}/images/{id}",
        "{folder}/masks/{id}",
        4,
    ),
    "LoveDA": (
        "Train/Rural/images_png/@.png Train/Rural/masks_png/@.png Train/Urban/images_png/@.png "
        "Train/Urban/masks_png/@.png Val/Rural/images_png/@.png Val/Rural/masks_png/@.png",
        "1 2",
        "{split}/{folder}/images_png/{id}",
        "{split}/{folder}/masks_png/{id}",
        6,
    ),
    "UAVid": (
        "uavid_train/seq1/Images/@.png uavid_train/seq1/Labels/@.png uavid_val/seq2/Images/@.png "
        "uavid_val/seq2/Labels/@.png",
        "000000 000100",
        "uavid_{split}/{folder}/Images/{id}",
        "uavid_{split}/{folder}/Labels/{id}",
        4,
    ),
    "LGG": (
        "P_1/P_1_@.tif P_1/P_1_@_mask.tif P_2/P_2_@.tif P_2/P_2_@_mask.tif",
        "1 2",
        "{id}",
        "{id}_mask",
        4,
    ),
    "GlaS": ("@.bmp @_anno.bmp", "train_1 testA_1 testB_1", "{split}_{id}", "{split}_{id}_anno", 3),
    "silhouettes": ("Images/@.jpg Silhouettes/@_s.png", "a b", "Images/{id}", "Silhouettes/{id}_s", 2),
    "mattes beside": ("@.jpg @_matte.png", "a b~2", "{id}", "{id}_matte", 2),
    "numbers of one split": ("@.bmp @_anno.bmp", "train_1 train_2", "{id}", "{id}_anno", 2),
    "ISIC of Kaggle, each folder twice": (
        "I_Training_Input/I_Training_Input/@.jpg I_Training_Truth/I_Training_Truth/@_segmentation.png "
        "I_Test_Input/I_Test_Input/9@.jpg I_Test_Truth/I_Test_Truth/9@_segmentation.png",
        "1 2",
        "I_{split}_Input/I_{split}_Input/{id}",
        "I_{split}_Truth/I_{split}_Truth/{id}_segmentation",
        4,
    ),
    "images and masks, one twice": ("images/images/@.jpg masks/@.png", "a b", "images/images/{id}", "masks/{id}", 2),
    "nnU-Net": (
        "D/imagesTr/@_0000.png D/labelsTr/@.png D/imagesTs/9@_0000.png D/labelsTs/9@.png",
        "a b",
        "images{split}/{id}",
        "labels{split}/{id}",
        4,
    ),
    "Massachusetts": (
        "train/sat/@.tiff train/map/@.tif test/sat/@.tiff test/map/@.tif",
        "1_15 2_15",
        "{split}/sat/{id}",
        "{split}/map/{id}",
        4,
    ),
    "COCO-Stuff": (
        "images/train2017/@.jpg stuffthingmaps/train2017/@.png images/val2017/@.jpg stuffthingmaps/val2017/@.png",
        "1 2",
        "images/{split}2017/{id}",
        "stuffthingmaps/{split}2017/{id}",
        4,
    ),
    "iSAID, masks of classes beside those of objects": (
        "train/images/@.png train/Semantic_masks/@_instance_color_RGB.png train/Instance_masks/@_instance_id_RGB.png "
        "val/images/@.png val/Semantic_masks/@_instance_color_RGB.png val/Instance_masks/@_instance_id_RGB.png",
        "P1 P2",
        "{split}/images/{id}",
        "{split}/Semantic_masks/{id}_instance_color_RGB",
        4,
    ),
    "an ending that some masks lack": (
        "CXR_png/@.png CXR_png/C@.png CXR_png/M@.png masks/@_mask.png masks/C@_mask.png masks/M@.png",
        "1 2",
        "CXR_png/{id}",
        "masks/{id}_mask",
        6,
    ),
    "HRF, whose mask/ is the field of view": (
        "images/@.jpg manual1/@.tif mask/@_mask.tif",
        "01_dr 01_h",
        "images/{id}",
        "manual1/{id}",
        2,
    ),
    "a split without masks": (
        "train/images/@.png train/labels/@.png val/images/@.png val/labels/@.png test/images/@.png",
        "a b",
        "{split}/images/{id}",
        "{split}/labels/{id}",
        4,
    ),
}


@pytest.mark.parametrize(("names", "ids", "images", "masks", "num"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_is_recognised_by_names_alone_and_its_own_templates_find_the_same(names, ids, images, masks, num):
    names = spell(names, ids)
    layout, kept = choose(names, "set")
    assert layout == Layout("pairs", images, masks)
    found = find_files(kept, layout)
    assert len(found.mask_of) == num == len(found.images)
    assert choose(names[::-1], "set", layout) == (layout, kept)


def test_a_given_split_stands_in_ids_and_what_is_left_out_is_told(capsys):
    names, ids, *_ = LAYOUTS["a split without masks"]
    layout, kept = choose(spell(names, ids), "set")
    assert find_files(kept, layout).splits == {"train/a": "train", "train/b": "train", "val/a": "val", "val/b": "val"}
    assert "2 images of test have no masks and are left out" in capsys.readouterr().out
    choose(spell(*LAYOUTS["Pascal VOC"][:2]), "set")
    assert "2 images without a mask in SegmentationClass/ left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "images"),
    [
        ("images/@.jpg annotations/instances_default.json", "images/{id}"),
        ("images/train/@.jpg images/val/@.jpg annotations/train.json annotations/val.json", "images/{split}/{id}"),
        ("train/@.jpg valid/@.jpg train/_annotations.coco.json valid/_annotations.coco.json", "{split}/{id}"),
        ("train2017/@.jpg val2017/@.jpg annotations/instances_train2017.json", "{split}2017/{id}"),
        ("images/all/@.tif livecell_coco_train.json", "images/{id}"),
        ("@.jpg annotations.json", "{id}"),
    ],
    ids=["CVAT", "splits", "Roboflow", "COCO 2017", "LIVECell", "flat"],
)
def test_annotations_of_coco_are_found_beside_their_images_however_they_lie(names, images):
    names = spell(names, "a b")
    layout, kept = choose(names, "set")
    assert layout == Layout("coco", images)
    assert set(kept) == set(names)


def test_lists_and_tables_of_classes_come_along():
    names = spell("VOC/JPEGImages/@.jpg VOC/SegmentationClass/@.png VOC/labelmap.txt VOC/notes.txt", "1 2")
    names += spell("VOC/ImageSets/Segmentation/@.txt", "train val trainval")
    _, kept = choose(names, "set")
    lists = {"ImageSets/Segmentation/train.txt", "ImageSets/Segmentation/val.txt", "labelmap.txt"}
    assert lists < {str(name) for name in kept}
    assert "notes.txt" not in {str(name) for name in kept}


REFUSED = {
    "two readers": (
        "Image_@.jpg Image_@_1stHO.png Image_@_2ndHO.png",
        r"(?s)read in 2 ways.*-S.*ingest\.layout=\{images: '\{id\}', masks: '\{id\}_1stHO'\}.*'\{id\}_2ndHO'",
    ),
    "two folders of masks": ("images/@.png labels/@.png gt/@.png", r"(?s)read in 2 ways.*'gt/\{id\}'.*'labels/\{id\}'"),
    "folders that say nothing": (
        "A/@.png B/@.png",
        r"found 2 pictures in A/ \(1\.png\), 2 pictures in B/ .*ingest\.layout=\{images: 'A/\{id\}', "
        r"masks: 'B/\{id\}'\}",
    ),
    "images alone": (
        "@.png",
        r"found 2 pictures in \./ \(1\.png\).*ingest\.layout=\{images: '\{id\}', masks: '\{id\}_mask'\}",
    ),
    "names with a word between": (
        "image_2/u@_0.png gt_image_2/u@_road_0.png",
        r"\{images: 'image_2/\{folder\}_\{id\}', masks: 'gt_image_2/\{folder\}_road_\{id\}'\}",
    ),
    "channels in files of their own": (
        "imagesTr/@_0000.png imagesTr/@_0001.png labelsTr/@.png",
        r"found 2 files with the mask of 1_0000, numbered as the channels of nnU-Net; .*stack them in a TIFF",
    ),
    "run lengths": (
        "train/@.jpg train.csv",
        r"if train\.csv describes masks \(run lengths, polygons\), draw them first",
    ),
    "shapes of all": ("images/@.jpg export.json", r"no masks/ folder.*if export\.json describes masks"),
    "Supervisely": ("ds/img/@.jpg ds/ann/@.jpg.json", r"found 2 Supervisely files, such as ann/1\.jpg\.json"),
    "formats that are not read": ("images/@.ppm.gz labels/@.ah.ppm.gz", r"found 4 PNM files, such as .*Other formats"),
    "DICOM with masks or previews": ("@/DICOM/i.dcm @/Ground/liver.png", r"found 2 DICOM files"),
    "files without suffix": (
        "P@/IM1 P@/IM2",
        r"found 4 files, such as .*none of them a picture .*DICOM, often without",
    ),
    "NIfTI": ("imagesTr/@.nii.gz labelsTr/@.nii.gz", r"found 4 NIfTI files, such as .*1\.nii\.gz; .*Other formats"),
    "DICOM": ("study/@.dcm", r"found 2 DICOM files, such as 1\.dcm"),
    "YOLO": (
        "train/images/@.jpg train/labels/@.txt",
        r"found 2 YOLO files, such as labels/1.txt, which .*export them as COCO",
    ),
    "LabelMe": ("@.jpg @.json", r"found 2 LabelMe files, such as 1\.json, which describe shapes"),
    "a list of addresses": ("urls.txt", r"found no pictures but urls\.txt; .*wget -x -nH -i urls\.txt"),
}


@pytest.mark.parametrize(("names", "message"), REFUSED.values(), ids=REFUSED)
def test_names_that_leave_a_doubt_are_refused_with_what_was_found_and_the_line_to_write(names, message):
    with pytest.raises(UserError, match=message):
        choose(spell(names, "1 2"), "set")


def test_templates_that_find_nothing_or_no_pair_are_refused():
    names = spell("A/@.png B/x@.png", "1 2")
    with pytest.raises(UserError, match=r"none that matches ingest\.layout for masks: 'C/\{id\}'"):
        choose(names, "set", Layout("pairs", "A/{id}", "C/{id}"))
    with pytest.raises(UserError, match=r"the first image has the id '1' and the first mask 'x1'; expected equal ids"):
        choose(names, "set", Layout("pairs", "A/{id}", "B/{id}"))
    layout, kept = choose(names, "set", Layout("pairs", "A/{id}", "B/x{id}"))
    assert find_files(kept, layout).mask_of == {"1": "1", "2": "2"}
    ph2 = spell("@/@_Dermoscopic_Image/@.bmp @/@_lesion/@_lesion.bmp", "IMD1 IMD2")
    layout, kept = choose(
        ph2, "set", Layout("pairs", "{id}/{id}_Dermoscopic_Image/{id}", "{id}/{id}_lesion/{id}_lesion")
    )
    assert find_files(kept, layout).mask_of == {"IMD1": "IMD1", "IMD2": "IMD2"}


@pytest.mark.parametrize(
    ("images", "masks"), [("a", "{id}"), ("{split}/{id}", "{id}"), ("{id}_{group}", "{id}"), ("{folder}/{id}", "{id}")]
)
def test_templates_of_params_name_an_id_and_the_split_in_both(images, masks):
    with pytest.raises(ValueError, match=r"must have \{id\}|\} in both"):
        ingest.Layout(images=images, masks=masks)
