import pytest
import yaml

from pipelines.params import load_params
from unetpp.errors import UserError


def refused(tmp_path, repository, change) -> str:
    values = yaml.safe_load((repository / "params.yaml").read_text())
    change(values)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError) as error:
        load_params(tmp_path / "params.yaml")
    return str(error.value)


def test_shipped_params_are_legal_and_frozen(params):
    assert params.train.num_workers >= 1
    with pytest.raises(ValueError, match="frozen"):
        params.train.epochs = 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["train"].update(epoch=3), "train.epoch: unknown key; did you mean epochs?"),
        (lambda v: v.update(trian=1), "trian: unknown key; did you mean train?"),
        (
            lambda v: v["ingest"]["synthetic"].update(sede=1),
            "ingest.synthetic.sede: unknown key; did you mean seed?",
        ),
        (lambda v: v["train"].pop("epochs"), "train.epochs: missing"),
        (lambda v: v["search"].update(widths=[]), "search.widths"),
        (
            lambda v: v["search"].update(widths=[[8, 0]]),
            "search.widths.0.1: input should be greater than 0, found 0",
        ),
        (lambda v: v["search"].update(widths=[[8]]), "search.widths.0"),
        (lambda v: v["train"].update(batch_size=7), "must be a multiple of"),
        (lambda v: v["ingest"].update(kind="folder"), "ingest.location"),
        (lambda v: v["ingest"].update(kind="tape"), "ingest.kind"),
        (lambda v: v["prepare"]["shares"].update(train=0.9), "prepare.shares: the shares must add up to 1"),
        (lambda v: v["prepare"].update(size=None), "train.crop_px"),
        (lambda v: v["model"].update(skips="plain"), "model: a plain U-Net has no shallow heads"),
        (lambda v: v["train"].update(learning_rate="fast"), "train.learning_rate"),
    ],
)
def test_wrong_values_are_refused_by_their_dotted_key(tmp_path, repository, change, message):
    assert message in refused(tmp_path, repository, change)


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path, repository):
    text = (repository / "params.yaml").read_text().replace("weight_decay: 1.0e-4", "weight_decay: 1e-4")
    (tmp_path / "params.yaml").write_text(text)
    assert load_params(tmp_path / "params.yaml").train.weight_decay == 1e-4


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "not YAML"), ("- a", "expected sections"), (None, "no such file")]
)
def test_files_that_hold_no_params_are_refused_by_name(tmp_path, text, message):
    if text is not None:
        (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_params(tmp_path / "params.yaml")
