"""The whole pipeline as a user runs it: a clone in a folder with a space in its name, `dvc repro`, real parts."""

import csv
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import boto3
import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file

from pipelines.evaluation.report_schema import Report
from pipelines.registry import mlflow_store
from tests.clones import Clone, git
from tests.unetpp.network.imagenet import LITE, imagenet_weights
from unetpp.files import sha256

pytestmark = pytest.mark.ray

CANARY = "canary-of-the-tests"
SECRETS = dict.fromkeys(
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN"), CANARY
)


# Experiments of one candidate and one worker: Ray was in the run before them.
LIGHT = ("search.widths=[[4,6,8]]", "train.num_workers=1", "export.formats=[]")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    folder = tmp_path_factory.mktemp("with") / "a space"
    folder.mkdir()
    made = Clone(folder)
    for command in (
        ["git", "remote", "add", "origin", f"https://{CANARY}@localhost/x.git"],
        ["dvc", "remote", "add", "--local", "private", f"https://me:{CANARY}@localhost/x"],
    ):
        made.run(*command)
    (folder / "dvc repro.log").write_text(made.run("dvc", "repro", "--quiet", UNETPP_VERBOSE="", **SECRETS))
    return made


def test_pipeline_ends_with_a_registered_version_of_every_depth(clone):
    widths = yaml.safe_load((clone.folder / "models/search/architecture.yaml").read_text())["widths"]
    depths = {f"L{d}" for d in range(1, len(widths))}
    metrics, versions = clone.json("reports/evaluate/report.json"), clone.json("reports/register/versions.json")
    assert set(metrics["depths"]) == depths | ({"mean"} if len(depths) > 1 else set())
    assert set(versions["versions"]) == depths
    with open(clone.folder / "reports/evaluate/depths.csv") as file:
        assert {row["depth"] for row in csv.DictReader(file)} == set(metrics["depths"])
    printed = clone.unetpp("summary")
    assert metrics["recommendation"] in " ".join(printed.split())
    assert "unetpp mlflow" in printed


def test_a_run_tells_its_story_in_a_few_lines_and_ends_with_the_summary(clone):
    log, end = (clone.folder / "dvc repro.log").read_text().strip(), clone.unetpp("summary").strip()
    assert log.endswith(end)
    story = log.removesuffix(end).splitlines()
    assert len(story) <= 40  # some twenty, and one each half minute
    assert [line for line in story if line.strip() and not re.match("[a-z0-9, ]+: |epoch ", line)] == []
    stages = {"ingest", "prepare", "search", "train", "export", "evaluate", "register"}
    assert stages <= {line.partition(":")[0] for line in story}


def test_report_says_what_its_schema_promises(clone):
    Report.model_validate(clone.json("reports/evaluate/report.json"))
    with open(clone.folder / "reports/evaluate/reliability.csv") as file:
        assert len(list(csv.DictReader(file))) == 10 * len(clone.json("reports/evaluate/report.json")["depths"])
    rows = clone.json("reports/evaluate/report.json")["engines"]["rows"]
    assert {(row["depth"], row["engine"]) for row in rows} >= {("L1", "onnxruntime"), ("L1", "openvino-int8")}
    assert len(clone.json("reports/evaluate/engines.json")["engines"]) == len(rows)


def test_search_chose_one_point_of_its_front_and_train_took_its_widths(clone):
    with open(clone.folder / "reports/search/search.csv") as file:
        rows = list(csv.DictReader(file))
    (chosen,) = [row for row in rows if row["chosen"] == "1"]
    assert chosen["on_front"] == "1"
    widths = yaml.safe_load((clone.folder / "models/search/architecture.yaml").read_text())["widths"]
    assert chosen["widths"] == " ".join(map(str, widths))
    assert {row["trial"] for row in rows} == {"1", "2"}


def test_registry_holds_run_trials_champion_and_evidence(clone):
    versions = clone.json("reports/register/versions.json")
    client = mlflow_store.connect(f"sqlite:///{clone.folder}/mlflow.db")
    run = client.get_run(versions["run_id"])
    assert "system/cpu_utilization_percentage" in run.data.metrics
    trials = f"tags.mlflow.parentRunId = '{run.info.run_id}'"
    assert len(client.search_runs([run.info.experiment_id], trials)) == 2
    aliases = client.get_registered_model("unetpp-nuclei").aliases
    assert set(aliases) >= set(versions["versions"])
    assert versions["promotion"] in ("champion", "challenger")
    assert ("champion" in aliases) == (versions["promotion"] == "champion"), versions["promotion_reason"]
    assert git(clone.folder, "rev-parse", "HEAD")[:12] in clone.unetpp("lineage", "unetpp-nuclei@L1")


def test_reports_are_opened_and_compared_by_folder_run_and_version(clone):
    run_id = clone.json("reports/register/versions.json")["run_id"]
    for name in ("reports/evaluate", run_id, "models:/unetpp-nuclei@L1"):
        assert "report.html" in clone.unetpp("report", name, "--no-browser")
    shown = clone.unetpp("compare", "reports/evaluate", run_id)
    assert "the same" in shown
    assert "no difference shown" in shown


def test_no_file_of_a_run_holds_a_secret_of_its_environment(clone):
    known = {".git/config", ".dvc/config.local"}  # where the test has put it
    files = [path for path in clone.folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"mlflow.db", "report.html", "manifest.json", "dvc repro.log"}
    found = {path.relative_to(clone.folder).as_posix() for path in files if CANARY.encode() in path.read_bytes()}
    assert found - {"tests/test_pipeline.py"} == known
    for command in (("unetpp", "doctor"), ("unetpp", "lineage", "unetpp-nuclei@L1")):
        assert CANARY not in clone.run(*command, **SECRETS)


def test_what_is_loaded_or_names_others_is_its_owners_alone(clone):
    modes = {name: (clone.folder / name).stat().st_mode & 0o777 for name in ("runs", "mlflow.db")}
    assert modes == {"runs": 0o700, "mlflow.db": 0o600}


def test_of_two_commands_at_once_none_spoils_the_others_results(clone):
    before = clone.hashes("data/prepared", "models", "reports")
    command = ["dvc", "repro", "--force", "--single-item", "prepare"]
    with ThreadPoolExecutor(2) as threads:
        ends = list(threads.map(lambda _: clone.finish(*command), range(2)))
    assert any(done.returncode == 0 for done in ends)
    for done in ends:
        assert done.returncode == 0 or re.search("another DVC process|blocked by|lock", done.stdout), done.stdout
        assert "Traceback" not in done.stdout
    assert "up to date" in clone.run("dvc", "repro")
    assert clone.hashes("data/prepared", "models", "reports") == before


def test_second_run_does_nothing(clone):
    before = (clone.folder / "dvc.lock").read_bytes()
    assert "up to date" in clone.run("dvc", "repro")
    assert (clone.folder / "dvc.lock").read_bytes() == before


def test_masks_are_predicted_by_folder_and_by_registry_alike(clone):
    image = str(sorted((clone.folder / "data/raw/images").iterdir())[0])
    clone.unetpp("predict", image, "--engine", "torch", "--depth", "1", "--out", "by folder")
    clone.unetpp("predict", image, "--engine", "torch", "--model", "models:/unetpp-nuclei@L1", "--out", "by registry")
    assert (
        next((clone.folder / "by folder").glob("*.png")).read_bytes()
        == next((clone.folder / "by registry").glob("*.png")).read_bytes()
    )
    deepest = "models:/unetpp-nuclei@" + max(clone.json("reports/register/versions.json")["versions"])
    clone.unetpp(
        "predict", image, "--engine", "torch", "--model", deepest, "--depth", "1", "--out", "pruned from registry"
    )
    assert (
        next((clone.folder / "by folder").glob("*.png")).read_bytes()
        == next((clone.folder / "pruned from registry").glob("*.png")).read_bytes()
    )
    printed = clone.unetpp(
        "predict", image, "--engine", "torch", "--model", "models:/unetpp-nuclei@L9", "--out", "x", expect=2
    )
    assert "L1" in printed
    assert "Traceback" not in printed


@pytest.mark.usefixtures("aws")
def test_data_and_models_go_to_an_s3_remote_and_come_back(clone, moto):
    with closing(boto3.client("s3", endpoint_url=moto)) as client:
        client.create_bucket(Bucket="dvc-remote")
    clone.run("dvc", "remote", "add", "--local", "store", "s3://dvc-remote/dvc")
    clone.run("dvc", "remote", "modify", "--local", "store", "endpointurl", moto)
    before = clone.hashes("data/raw", "data/prepared", "models")
    assert len(before) > 80
    clone.run("dvc", "push", "--remote", "store")
    for folder in ("data", "models", ".dvc/cache"):
        shutil.rmtree(clone.folder / folder)
    clone.run("dvc", "pull", "--remote", "store")
    assert clone.hashes("data/raw", "data/prepared", "models") == before
    assert "up to date" in clone.run("dvc", "status")


def test_metrics_and_plots_are_dvcs(clone):
    shown = clone.run("dvc", "metrics", "show")
    assert "iou_image" in shown
    assert "suggested_depth" in shown
    clone.run("dvc", "plots", "show", "--out", "dvc_plots")
    page = (clone.folder / "dvc_plots/index.html").read_text()
    assert "val_iou" in page
    assert "latency_ms" in page


def test_doctor_finds_nothing_wrong_with_the_project(clone):
    assert "no problems found" in clone.run("unetpp", "doctor")


@pytest.mark.nightly
@pytest.mark.shared_data
def test_real_images_need_two_overrides(clone, shared_data):
    archive = shared_data / "bbbc038_sample.zip"
    clone.experiment("real", "ingest.kind=zip", f"ingest.location={archive}", *LIGHT, until="evaluate")
    manifest = clone.json("data/prepared/manifest.json")
    assert sum(split["num_images"] for split in manifest["splits"].values()) == 31
    assert "fluorescence" in (clone.folder / "reports/evaluate/images.csv").read_text()


@pytest.fixture(scope="module")
def classes(clone: Clone) -> Clone:
    """The clone after an experiment of that name, on classes."""
    # An experiment leaves its params in the working tree, those of the test before too.
    changes = ["ingest.kind=synthetic", "ingest.location=null", "ingest.synthetic.masks=labels"]
    changes += ["prepare.num_classes=3", "prepare.classes=[nucleus,border]", "model.norm=group"]
    changes += ["model.upsampling=transposed", "train.loss=focal_dice", "train.head_weights=sum", "train.epochs=2"]
    clone.experiment("classes", *changes, *LIGHT, until="register")
    return clone


def test_classes_by_name_go_through_the_whole_pipeline_with_params_alone(classes):
    clone = classes
    assert clone.json("reports/train/metrics.json")["epochs"] == 2
    report = clone.json("reports/evaluate/report.json")
    assert set(report["classes"]["L1"]) == {"nucleus", "border"}
    page = (clone.folder / "reports/evaluate/report.html").read_text()
    assert ">Class</th>" in page
    assert "border" in page
    image = str(sorted((clone.folder / "data/raw/images").iterdir())[0])
    for way in (("--heads", "mean"), ("--model", "models:/unetpp-nuclei@L1")):
        clone.unetpp("predict", image, *way, "--out", "classes")
        mask = np.array(Image.open(next((clone.folder / "classes").glob("*.png"))))
        assert set(np.unique(mask)) <= {0, 1, 2}


def test_experiments_are_compared_by_params_metrics_and_plots(classes):
    clone = classes
    clone.experiment("tolerant", "evaluate.tolerance_iou=0.5", until="evaluate")
    table = clone.run("dvc", "exp", "show", "--only-changed", "--csv")
    rows = {row["Experiment"]: row for row in csv.DictReader(table[table.index("Experiment,") :].splitlines())}
    assert {rows[name]["evaluate.tolerance_iou"] for name in ("classes", "tolerant")} == {"0.01", "0.5"}
    assert all(float(rows[name]["latency_ms"]) > 0 for name in ("classes", "tolerant"))
    metrics = json.loads(clone.run("dvc", "metrics", "diff", "classes", "tolerant", "--all", "--json"))
    assert set(metrics) == {f"reports/{name}" for name in ("data.json", "evaluate/metrics.json", "train/metrics.json")}
    assert {"iou_image", "iou_image_low", "latency_ms"} <= set(metrics["reports/evaluate/metrics.json"])
    printed = clone.run("dvc", "plots", "diff", "classes", "tolerant", "--out", "dvc_plots")
    assert "failed" not in table + printed
    page = (clone.folder / "dvc_plots/index.html").read_text()
    assert '"rev": "classes"' in page
    assert '"rev": "tolerant"' in page


@pytest.mark.nightly
def test_an_encoder_with_imagenet_weights_becomes_a_registered_family(tmp_path):
    weights = tmp_path / "lite0.safetensors"
    save_file(imagenet_weights(), weights)
    (tmp_path / "clone").mkdir()
    clone = Clone(tmp_path / "clone")
    begun = [f"model.encoder={LITE}", f"model.encoder_weights={weights}", "train.encoder_lr=0.3"]
    clone.experiment("encoder", *begun, *LIGHT, "train.epochs=2", "export.formats=[onnx]", until="register")
    report, versions = (clone.json(f"reports/{name}.json") for name in ("evaluate/report", "register/versions"))
    assert set(versions["versions"]) == {"L1", "L2"}
    assert {(row["depth"], row["engine"]) for row in report["engines"]["rows"]} >= {
        (depth, engine) for depth in ("L1", "L2") for engine in ("onnxruntime", "openvino")
    }
    page = (clone.folder / "reports/evaluate/report.html").read_text()
    model = "models:/unetpp-nuclei@L2"
    found = mlflow_store.connect(f"sqlite:///{clone.folder}/mlflow.db").get_model_version_by_alias(
        "unetpp-nuclei", "L2"
    )
    for told in (page, str(found.description), clone.unetpp("lineage", model)):
        assert sha256(weights) in told
    assert f"encoder {LITE}" in page
    assert f"encoder {LITE} initialised from {weights}" in str(found.description)
    assert found.tags["encoder"] == LITE
    image = str(sorted((clone.folder / "data/raw/images").iterdir())[0])
    torch, onnx = ["--engine", "torch"], ["--engine", "onnxruntime"]
    given = [["--depth", "2", *torch], ["--model", model, *torch], ["--model", model, *onnx]]
    masks = []
    for number, words in enumerate(given):
        clone.unetpp("predict", image, *words, "--out", f"encoder {number}")
        masks.append(np.array(Image.open(next((clone.folder / f"encoder {number}").glob("*.png")))))
    assert (masks[0] == masks[1]).all()
    assert (masks[0] != masks[2]).mean() < 0.001


@pytest.mark.nightly
def test_objects_that_touch_are_parted_by_the_whole_pipeline_with_one_param(classes):
    clone = classes  # whose params it leaves
    changes = ["ingest.synthetic.masks=instances", "prepare.num_classes=1", "prepare.classes=null"]
    clone.experiment("parted", "model.targets=[mask,boundary,distance]", *changes, *LIGHT, until="register")
    report, versions = clone.json("reports/evaluate/report.json"), clone.json("reports/register/versions.json")
    Report.model_validate(report)
    assert (report["objects"]["true"], report["objects"]["predicted"]) == ("numbers", "watershed")
    assert set(versions["versions"]) == {"L1", "L2"}
    assert "AP points" in clone.unetpp("compare", "reports/evaluate", "reports/evaluate")
    image = str(sorted((clone.folder / "data/raw/images").iterdir())[0])
    clone.unetpp("predict", image, "--model", f"models:/unetpp-nuclei/{versions['candidate']}", "--out", "parted")
    assert [path.suffix for path in (clone.folder / "parted/labels").glob("[!.]*")] == [".tif"]
