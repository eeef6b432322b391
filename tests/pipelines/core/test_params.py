import re
from typing import cast, get_args

import pytest
import torch
import yaml
from pydantic import BaseModel

import unetpp
from pipelines.core.params import Params, load_params, override
from unetpp.errors import UserError
from unetpp.network.losses import LOSSES, WEIGHTED, segmentation_loss
from unetpp.network.model import NORMS, SKIPS, UPSAMPLINGS


def refused(tmp_path, repository, change) -> str:
    values = yaml.safe_load((repository / "params.yaml").read_text())
    change(values)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError) as error:
        load_params(tmp_path / "params.yaml")
    return str(error.value)


def test_null_turns_near_duplicates_off(tmp_path, repository):
    values = yaml.safe_load((repository / "params.yaml").read_text())
    values["prepare"]["near_duplicates"] = None
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    assert load_params(tmp_path / "params.yaml").prepare.near_duplicates is None


def test_shipped_params_are_legal_and_frozen(params):
    assert params.train.num_workers >= 1
    with pytest.raises(ValueError, match="frozen"):
        params.train.epochs = 3


NAMES = ("#1", "?", "@L1", "\\", "\n", " ", "/1", "x" * 256)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["train"].update(epoch=3), "train.epoch: unknown key; did you mean epochs?"),
        (lambda v: v["evaluate"].update(object_sizes_px=[9, 3]), "evaluate.object_sizes_px: expected two diameters"),
        (lambda v: v["evaluate"]["gates"].update(flip=0.9), "evaluate.gates.flip: unknown key; did you mean flips?"),
        (lambda v: v["evaluate"]["gates"].update(shift=1.5), "evaluate.gates.shift: "),
        (lambda v: v.update(trian=1), "trian: unknown key; did you mean train?"),
        (
            lambda v: v["ingest"]["synthetic"].update(sede=1),
            "ingest.synthetic.sede: unknown key; did you mean seed?",
        ),
        (lambda v: v["train"].pop("epochs"), "train.epochs: missing"),
        (lambda v: v["train"].update(crops_per_image=2), "train.crops_per_image is 2, and train.crop_px is null"),
        (lambda v: v["augment"].update(flips=True), "set augment.flips: all and augment.quarter_turns: true"),
        (lambda v: v["augment"].update(flips=False), "set augment.flips: none and augment.quarter_turns: false"),
        (lambda v: v["prepare"].update(size=[96, 128]), "set augment.quarter_turns to false, train.crop_px, or"),
        (
            lambda v: (v["prepare"].update(size=[100, 128]), v["augment"].update(quarter_turns=False)),
            "sides divisible by 8: set prepare.size to [96, 128] or [104, 128]",
        ),
        (lambda v: v["prepare"].update(size=None, fit="pad"), "prepare.fit is pad, and prepare.size is null"),
        (lambda v: v["search"].update(widths=[]), "search.widths"),
        (
            lambda v: v["search"].update(widths=[[8, 0]]),
            "search.widths.0.1: input should be greater than 0, found 0",
        ),
        (lambda v: v["search"].update(widths=[[8]]), "search.widths.0"),
        (lambda v: v["train"].update(batch_size=7), "must be a multiple of"),
        (lambda v: v["ingest"].update(kind="folder"), "ingest.location"),
        (lambda v: v["ingest"].update(kind="tape"), "ingest.kind"),
        (lambda v: v["ingest"].update(kind="s3", location="/data"), "ingest.location must be s3://bucket/prefix"),
        (lambda v: v["ingest"].update(kind="s3", location="s3://"), "ingest.location must be s3://bucket/prefix"),
        (lambda v: v["ingest"].update(kind="http", location="ftp://a/b.zip"), "must be the address of a zip or tar"),
        (lambda v: v["ingest"].update(kind="zip", location="https://a/b.zip"), "set ingest.kind=http"),
        (lambda v: v["ingest"].update(kind="folder", location="s3://a/b"), "set ingest.kind=s3"),
        (lambda v: v["ingest"].update(kind="s3", location="s3://a", sha256="0" * 64), "set ingest.sha256 to null"),
        (lambda v: v["ingest"].update(sha256="abc"), "ingest.sha256"),
        (
            lambda v: v["prepare"]["groups"].update(pattern="(a)", table="t.csv"),
            "prepare.groups: found a pattern and a table",
        ),
        (lambda v: v["prepare"]["groups"].update(pattern="a"), "pattern must have one group in parentheses"),
        (lambda v: v["prepare"]["groups"].update(pattern="(a)(b)"), "found 2 in '(a)(b)'"),
        (lambda v: v["prepare"]["groups"].update(pattern="(a"), "pattern is not a regular expression"),
        (
            lambda v: v["prepare"].update(folds=5, fold=5),
            "prepare: fold is 5 and counts from 0, so of 5 folds",
        ),
        (lambda v: v["prepare"]["near_duplicates"].update(distance=16), "prepare.near_duplicates.distance"),
        (lambda v: v["ingest"]["s3"].update(endpoint="minio:9000"), "ingest.s3.endpoint"),
        (lambda v: v["ingest"]["s3"].update(anonymous=True, profile="lab"), "profile needs one: set one of the two"),
        (lambda v: v["prepare"]["shares"].update(train=0.9), "prepare.shares: the shares must add up to 1"),
        (lambda v: v["prepare"].update(size=None), "train.crop_px"),
        (lambda v: v["prepare"].update(pages="volume"), "prepare.pages"),
        (lambda v: v["prepare"].update(max_pixels=0), "prepare.max_pixels"),
        (lambda v: v["prepare"].update(classes=[]), "prepare.classes"),
        (lambda v: v["prepare"].update(classes=["a/b"]), "prepare.classes.0"),
        (lambda v: v["prepare"].update(classes=["a", "A"], num_classes=3), "prepare.classes must differ, found a, A"),
        (
            lambda v: v["prepare"].update(classes=["a", "b"], num_classes=2),
            "prepare.num_classes is 2 and prepare.classes names 2: set it to 3, for them and the background, or to 1",
        ),
        (
            lambda v: v["prepare"].update(classes=["a", "b"], num_classes=3, multilabel=True),
            "names 2: with prepare.multilabel set it to 2, as background is not a label",
        ),
        (lambda v: v["prepare"].update(classes=[".."]), "prepare.classes.0"),
        (
            lambda v: v["prepare"].update(num_classes=8, multilabel=True),
            "prepare.multilabel takes 2 to 7 labels, found prepare.num_classes 8",
        ),
        (lambda v: v["prepare"].update(num_classes=1, multilabel=True), "one label is foreground, which needs no"),
        (
            lambda v: (
                v["prepare"].update(num_classes=3, multilabel=True),
                v["train"].update(class_weights="balanced"),
            ),
            "train.class_weights weigh classes of which one holds at a pixel, and prepare.multilabel is true",
        ),
        (lambda v: v["prepare"].update(ignore=0), "prepare.ignore"),
        (lambda v: v["prepare"].update(ignore=1), "prepare.ignore is 1, which is a class: masks hold 0 to 1"),
        (lambda v: v["prepare"].update(ignore=2, num_classes=3), "prepare.ignore is 2, which is a class"),
        (
            lambda v: v["prepare"].update(ignore=3, num_classes=3, multilabel=True),
            "prepare.ignore is 3, which is a class: masks hold 0 to 3",
        ),
        (lambda v: v["model"].update(skips="plain"), "model: a plain U-Net has no shallow heads"),
        (
            lambda v: v["model"].update(targets=["mask", "distance"]),
            "model.targets: expected ['mask'], or ['mask', 'boundary', 'distance'] to part instances, found ['mask",
        ),
        (
            lambda v: (
                v["prepare"].update(multilabel=True, num_classes=2, classes=["a", "b"]),
                v["model"].update(targets=["mask", "boundary", "distance"]),
            ),
            "prepare.multilabel is true: set model.targets to [mask]",
        ),
        (lambda v: v["train"].update(learning_rate="fast"), "train.learning_rate"),
        (lambda v: v["train"].update(foreground_crops=0.3), "train.crop_px is null"),
        (lambda v: v["prepare"].update(size=100), "prepare.size is 100, and a network of the widths 8 16 32 64 needs"),
        (lambda v: v["prepare"].update(size=100), "divisible by 8: set prepare.size to 96 or 104"),
        (lambda v: v["train"].update(crop_px=40), "train.crop_px is 40, and a network of the widths 8 16 32 64 128"),
        (
            lambda v: v["search"].update(grow={"max_depth": 6, "base": [8], "growth": [2]}),
            "prepare.size is 96, and a network of the widths 8 16 32 64 128 256 512",
        ),
        (
            lambda v: (v["prepare"].update(size=16), v["train"].update(batch_size=2)),
            "prepare.size is 16, and the deepest level of a network of depth 4 is 1x1 there: with model.norm batch",
        ),
        (
            lambda v: (v["prepare"].update(size=16), v["train"].update(accumulate=4)),
            "is 1x1 there: with model.norm batch and 1 image(s)",
        ),
        (lambda v: (v["prepare"].update(size=16), v["model"].update(norm="instance")), "with model.norm instance"),
        *((lambda v, bad=bad: v["register"].update(model_name=f"nuclei{bad}"), "register.model_name") for bad in NAMES),
        (lambda v: v["register"].update(experiment="x" * 257), "register.experiment"),
        (lambda v: v["train"].update(loader_workers=-1), "train.loader_workers"),
        (
            lambda v: v["train"].update(compile="default"),
            "train.compile is for GPUs: on CPUs compiled training",
        ),
        (lambda v: v["train"].update(class_weights="even"), "train.class_weights: expected null, balanced or a list"),
        (lambda v: v["train"].update(class_weights=[1, -1]), "train.class_weights: expected null, balanced or a list"),
        (lambda v: v["train"].update(class_weights=[1, 1, 1]), "train.class_weights has 3 weights; expected 2"),
        (lambda v: v["cluster"].update(storage="shared/data"), "cluster: cluster.storage must be an absolute path"),
        (lambda v: v["cluster"].update(storage="gs://a/b"), "cluster.storage must be a path or s3://bucket/prefix"),
    ],
)
def test_wrong_values_are_refused_by_their_dotted_key(tmp_path, repository, change, message):
    assert message in refused(tmp_path, repository, change)


TABLES = {
    ("model", "skips"): SKIPS,
    ("model", "norm"): NORMS,
    ("model", "upsampling"): UPSAMPLINGS,
    ("train", "loss"): LOSSES,
}


@pytest.mark.parametrize(("section", "key"), TABLES)
def test_params_and_docs_name_every_row_of_a_table_and_no_other_value(repository, section, key):
    """The code is the table alone (tests/unetpp/network/test_model.py); this fails until a new row can be chosen."""
    of_section = cast(type[BaseModel], Params.model_fields[section].annotation)
    table, legal = TABLES[section, key], of_section.model_fields[key].annotation
    folded = {"none"} if key == "norm" else set()  # what an export is made with: nobody trains it by a param
    assert set(get_args(legal)) == set(table) - folded
    documented = (repository / "docs/networks.md").read_text()
    assert [name for name in table if name not in folded and f"`{name}`" not in documented] == []


def test_every_loss_is_named_where_people_choose_one(repository):
    line = next(line for line in (repository / "params.yaml").read_text().splitlines() if line.startswith("  loss: "))
    assert set(re.findall(r"\w+", line)) >= set(LOSSES)
    assert [name for name in LOSSES if f'"{name}"' not in (unetpp.fit.__doc__ or "")] == []


@pytest.mark.parametrize("name", LOSSES)
def test_weights_of_classes_are_refused_with_the_losses_that_they_do_not_change(params, name):
    logits, mask = torch.linspace(-1, 1, 64).view(1, 1, 8, 8), torch.arange(64).view(1, 8, 8) % 2
    weights = torch.tensor([1.0, 7.0])
    same = torch.equal(segmentation_loss(logits, mask, weights, name), segmentation_loss(logits, mask, None, name))
    assert same == (name not in WEIGHTED)
    if same:
        with pytest.raises(UserError, match="weigh a cross-entropy"):
            override(params, {"train.loss": name, "train.class_weights": [1.0, 7.0]})
    else:
        override(params, {"train.loss": name, "train.class_weights": [1.0, 7.0]})


SECRETS = {
    "key": (lambda v: v["ingest"]["s3"].update(secret_access_key="hidden/value"), "ingest.s3.secret_access_key"),
    "key in upper case": (lambda v: v["ingest"].update(AWS_SESSION_TOKEN="hidden/value"), "ingest.AWS_SESSION_TOKEN"),
    "access key id": (lambda v: v["ingest"]["s3"].update(profile="AKIAHIDDENVALUE12345"), "ingest.s3.profile"),
    "address": (lambda v: v["ingest"].update(location="https://me:hidden@host/a.zip"), "ingest.location"),
    "endpoint": (lambda v: v["ingest"]["s3"].update(endpoint="https://me:hidden@host"), "ingest.s3.endpoint"),
    "signature": (
        lambda v: v["ingest"].update(location="https://host/a.zip?X-Amz-Signature=hidden"),
        "ingest.location",
    ),
    "token": (lambda v: v["ingest"].update(location="https://hidden@host/a.zip"), "ingest.location"),
    "key of an address": (lambda v: v["ingest"].update(location="https://host/a?apikey=hidden"), "ingest.location"),
    "Google's": (lambda v: v["ingest"].update(location="https://h/a?X-Goog-Signature=hidden"), "ingest.location"),
    "database": (
        lambda v: v["register"].update(tracking_uri="postgresql://me:hidden@host/db"),
        "register.tracking_uri",
    ),
}


@pytest.mark.parametrize(("change", "key"), SECRETS.values(), ids=SECRETS)
def test_a_credential_is_refused_by_its_key_and_never_shown(tmp_path, repository, change, key):
    message = refused(tmp_path, repository, change)
    assert f"params.yaml: {key}: found what looks like " in message
    assert "hidden" not in message.lower()


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path, repository):
    text = (repository / "params.yaml").read_text().replace("weight_decay: 1.0e-4", "weight_decay: 1e-4")
    (tmp_path / "params.yaml").write_text(text)
    assert load_params(tmp_path / "params.yaml").train.weight_decay == 1e-4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML"),
        ("- a", "found list; expected names with values.*sections such as ingest"),
        (None, "no such file"),
    ],
)
def test_files_that_hold_no_params_are_refused_by_name(tmp_path, text, message):
    if text is not None:
        (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(("size", "norm"), [(16, "batch"), (32, "instance"), (16, "group")])
def test_sizes_that_a_norm_layer_can_do_with_are_legal(params, size, norm):
    changes = {"prepare.size": size, "model.norm": norm, "search.widths": [[8, 16, 32, 64, 128]]}
    assert override(params, changes).prepare.size == size
