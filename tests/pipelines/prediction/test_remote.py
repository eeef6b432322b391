"""Images and masks in buckets, predicted by this machine alone."""

import os
import re
import subprocess
import sys

import pytest
import yaml

from pipelines.prediction.addresses import Item
from pipelines.prediction.opening import Asked
from pipelines.prediction.outputs import Outputs
from pipelines.prediction.remote import check_ray, predict_remotely
from pipelines.prediction.transfers import AHEAD
from pipelines.prediction.work import Work
from tests.conftest import REPOSITORY
from tests.pipelines.prediction.far import expected_masks, make_images, make_model, masks_in, puts
from tests.servers import s3_error
from unetpp.errors import UserError

NUMBER = AHEAD + 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("far") / "model")


@pytest.fixture(scope="module")
def images():
    return make_images(NUMBER)


@pytest.fixture(scope="module")
def expected(images, model, tmp_path_factory):
    return expected_masks(images, model, tmp_path_factory.mktemp("local"))


@pytest.fixture
def far(bucket, images, model, monkeypatch, tmp_path):
    """The command on a bucket that holds the images: `far(out)`."""
    bucket.put(images)
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.proxy.url)
    monkeypatch.chdir(tmp_path)

    def run(out, *patterns, **options):
        named = patterns or (f"s3://{bucket.name}/set",)
        predict_remotely(list(named), options.pop("model", str(model)), Asked(), str(out), Outputs(), **options)

    return run


def test_masks_are_the_local_ones_from_bucket_to_bucket_to_folder_and_back(
    far, bucket, images, expected, model, tmp_path
):
    out = f"s3://{bucket.name}/out"
    far(out)
    assert masks_in(bucket) == expected
    far(tmp_path / "masks")
    assert {one.name: one.read_bytes() for one in (tmp_path / "masks").glob("*.png")} == expected
    # The command line, with the endpoint from params.yaml.
    for name, content in images.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    params["ingest"]["s3"]["endpoint"] = bucket.proxy.url
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    command = [sys.executable, "-m", "pipelines.cli", "predict", "in", "--model", str(model), "--out", f"{out}-2/x"]
    environment = {name: value for name, value in os.environ.items() if name != "AWS_ENDPOINT_URL"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert masks_in(bucket, "out-2/x/") == expected
    # Again: nothing is to be done.
    bucket.proxy.requests.clear()
    far(out)
    assert not puts(bucket)
    assert len([one for one in bucket.proxy.requests if one.is_object and ".png" in one.path]) == 1  # for its size


def test_a_second_run_continues_and_takes_what_was_changed(far, bucket, images, expected, capsys):
    out = f"s3://{bucket.name}/out"
    [first, second, *_] = sorted(images)
    bucket.client.put_object(Bucket=bucket.name, Key=f"set/{first}", Body=b"no picture")
    fail = r"1 of 36 images, .*\ns3://bucket-\d+/set/a/000.png: "
    with pytest.raises(UserError, match=fail):
        far(out)
    assert masks_in(bucket).keys() == expected.keys() - {"000.png"}
    bucket.client.put_object(Bucket=bucket.name, Key=f"set/{first}", Body=images[first])
    bucket.client.delete_object(Bucket=bucket.name, Key=f"out/{second[2:]}")
    bucket.proxy.requests.clear()
    far(out)
    assert {path.rpartition("/")[2].partition("?")[0] for path in puts(bucket)} == {first[2:], second[2:]}
    assert masks_in(bucket) == expected
    assert "34 of 36 images are already done" in capsys.readouterr().out


def test_what_others_or_another_model_wrote_is_in_the_way(far, bucket, expected, tmp_path):
    out = f"s3://{bucket.name}/out"
    bucket.put({"007.png": b"mine", "other.png": b"mine"}, "out/")
    with pytest.raises(
        UserError, match=r"s3://bucket-\d+/out/007.png: already exists, .* nothing was done.*--overwrite"
    ):
        far(out)
    assert not puts(bucket)
    far(out, overwrite=True)
    assert masks_in(bucket) == expected | {"other.png": b"mine"}
    wider = make_model(tmp_path / "other", 7)
    with pytest.raises(
        UserError, match=r"out: found outputs of another model .*: model \w+ instead of \w+; expected outputs"
    ):
        far(out, model=str(wider))
    far(out, model=str(wider), overwrite=True)
    assert masks_in(bucket).keys() == {*expected, "other.png"}
    assert masks_in(bucket) != expected | {"other.png": b"mine"}


def test_what_cannot_be_is_refused_before_anything_is_predicted(far, bucket, tmp_path):
    here = f"s3://{bucket.name}"
    bucket.put({"c/000.tif": b""})
    with pytest.raises(UserError, match=r"same name .*set/a/000.png, .*set/c/000.tif; predict them into"):
        far(f"{here}/out")
    for patterns, out, said in (
        ([f"{here}/set/a"], f"{here}/set/a/masks", "lies in .*which is read"),
        ([f"{here}/set/a/000.png"], f"{here}/set/a", "set/a/000.png: this output is also an input"),
        ([f"{here}/nothing"], f"{here}/out", "no image there"),
        (["s3:///set"], f"{here}/out", "found no bucket in this address"),
        ([f"{here}/set/a"], "s3://no-such-bucket/out", "no bucket 'no-such-bucket'.*correct --out"),
    ):
        with pytest.raises(UserError, match=said):
            far(out, *patterns)
    assert not puts(bucket)
    assert check_ray("head:6379") == "head:6379"
    for wrong in ("scans/", f"{here}/set"):
        with pytest.raises(UserError, match=r"--ray .*: expected the host:port"):
            check_ray(wrong)
    with pytest.raises(UserError, match="submit a job: ray job submit --address http://head:8265 -- unetpp predict"):
        check_ray("http://head:8265")
    # A node that sees other folders than the driver.
    work = Work(str(tmp_path / "out"), None, Outputs(), {})  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"out: .*, a node of the cluster, does not see there"):
        work.check_sees([])
    with pytest.raises(UserError, match=r"gone: .* a folder that all nodes share"):
        work.check_sees([Item(str(tmp_path / "gone/a.png"), 1, 0)])


def test_images_that_cannot_be_fetched_are_named_and_a_store_that_fails_ends_it(far, bucket, expected):
    def denied(request, answer):
        return s3_error(403, "AccessDenied") if request.is_object and "/004.png" in request.path else answer

    bucket.fault = denied
    with pytest.raises(UserError, match=r"^1 of 36 images.*\n.*set/a/004.png: cannot be read: access denied"):
        far(f"s3://{bucket.name}/out")
    assert masks_in(bucket).keys() == expected.keys() - {"004.png"}
    bucket.fault = lambda request, answer: s3_error(403, "InvalidAccessKeyId") if request.is_object else answer
    with pytest.raises(UserError, match="does not accept the credentials") as raised:
        far(f"s3://{bucket.name}/elsewhere")
    assert not re.search(r"\d of 36 images", str(raised.value))
