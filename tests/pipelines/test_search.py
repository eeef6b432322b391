"""The search stage: one trial by hand, then whole searches with real processes on Ray Tune."""

import csv
import itertools
import json
import os
import pickle
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import yaml

from pipelines.core.params import load_params
from pipelines.pages.search_page import build_page
from pipelines.search import search
from pipelines.storage.run_store import open_store
from pipelines.training.architecture import find_init, read_architecture
from pipelines.training.epoch_metrics import best_so_far
from pipelines.training.spec import Init, TrainSpec, make_spec
from pipelines.training.state import TrainState
from pipelines.tuning.algorithms import Proposal, make_scheduler, proposals, tell_scheduler
from pipelines.tuning.candidate_costs import count_costs, network_key
from pipelines.tuning.pareto import Trial
from pipelines.tuning.probe import Probe, announce, estimate, probe
from pipelines.tuning.ray_tune import Trials, made_of, why_failed
from pipelines.tuning.space import decode, read_space
from pipelines.tuning.trials import spec_of, trial_rows
from tests.canary import Canary
from tests.pages import Outline
from tests.pipelines.training.small import last
from tests.pipelines.tuning.declared import NO_LIMIT, arguments, declared
from tests.ray_cluster import assert_locked
from tests.waiting import wait_for
from unetpp.errors import UserError
from unetpp.training.checkpoint import load_checkpoint, save_checkpoint


def table(project, name: str = "search") -> list[dict]:
    with open(project.folder / f"reports/{name}.csv") as file:
        return list(csv.DictReader(file))


def architecture(project) -> dict:
    return yaml.safe_load((project.folder / "models/search/architecture.yaml").read_text())


def first_of(prepared, **search) -> TrainSpec:
    """The training of the first candidate."""
    space = read_space(declared(**search))
    return spec_of(space.candidates[0], make_spec(space.params, (), prepared))


# One trial, in this process.


def test_a_trial_reports_every_depth_at_each_epoch_and_the_best_so_far(prepared):
    rows = [row for row, _ in trial_rows(first_of(prepared, widths=[[4, 6, 8]], epochs=3), TrainState(), 3)]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for depth in ("L1", "L2"):
        seen = [row[f"val_iou_{depth}"] for row in rows]
        assert [row[f"best_val_iou_{depth}"] for row in rows] == [max(seen[:n]) for n in (1, 2, 3)]
    assert rows[-1]["best_val_iou"] == max(rows[-1]["best_val_iou_L1"], rows[-1]["best_val_iou_L2"])


def test_a_trial_that_goes_on_from_its_checkpoint_ends_as_one_that_was_never_cut(prepared, tmp_path):
    spec = first_of(prepared, epochs=3)
    whole = list(trial_rows(spec, TrainState(), 3))
    [(_, state)] = trial_rows(spec, TrainState(), 1)
    assert state is not None
    save_checkpoint(tmp_path, state.to_dict())
    rest = list(trial_rows(spec, TrainState.from_dict(load_checkpoint(tmp_path)), 3))
    timeless = [{key: row[key] for key in row if "iou" in key} for row, _ in whole]
    assert [{key: row[key] for key in row if "iou" in key} for row, _ in rest] == timeless[1:]


def test_a_trial_whose_loss_is_not_finite_ends_with_the_reason_and_raises_nothing(prepared):
    space = {"train.learning_rate": [1e30], "train.optimizer": ["sgd"]}
    rows = list(trial_rows(first_of(prepared, space=space, epochs=3), TrainState(), 3))
    row, _ = rows[-1]
    assert "non-finite loss" in row["dead"]
    assert row["best_val_iou"] >= 0


def test_a_trial_that_had_ended_only_says_so_again(prepared):
    spec = first_of(prepared, epochs=2)
    *_, (row, state) = trial_rows(spec, TrainState(), 2)
    assert state is not None
    assert list(trial_rows(spec, state, 2)) == [(row, None)]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory"), MemoryError()]
)
def test_a_trial_without_memory_ends_with_the_reason_and_a_bug_stays_a_bug(prepared, monkeypatch, error):
    def fail(*_, **__):
        yield from ()
        raise error

    monkeypatch.setattr("pipelines.tuning.trials.epochs", fail)
    (row, _), *_ = trial_rows(first_of(prepared), TrainState(), 2)
    assert row["dead"].startswith("out of memory in epoch 1")
    error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        list(trial_rows(first_of(prepared), TrainState(), 2))


def test_train_begins_with_the_weights_of_the_search_where_it_is_told_to(prepared, tmp_path):
    spec = first_of(prepared, widths=[[4, 6, 8]], epochs=1)
    weights = last(spec).best.weights
    torch.save(weights, tmp_path / "init.pt")
    still = spec.train.model_copy(update={"learning_rate": 1e-12})
    warm = last(replace(spec, init=Init(str(tmp_path / "init.pt"), "0" * 64), train=still)).weights or {}
    for key, value in weights.items():
        if key.endswith(("weight", "bias")):
            assert torch.allclose(warm[key], value, atol=1e-6)
    canary = Canary(tmp_path)
    for _, content in canary.forms():
        (tmp_path / "init.pt").write_bytes(content)
        with pytest.raises(UserError, match=r"init\.pt: the weights do not fit this network"):
            last(replace(spec, init=Init(str(tmp_path / "init.pt"), "0" * 64)))
        assert canary.alive


def test_a_plain_u_net_has_one_depth_a_trial(prepared):
    params = declared(widths=[], grow={"max_depth": 2, "base": [4], "growth": [1.5]}, epochs=1)
    model = params.model.model_copy(update={"skips": "plain", "deep_supervision": False})
    space = read_space(params.model_copy(update={"model": model}))
    whole, seen = make_spec(space.params, (), prepared), []
    for candidate in space.candidates:
        (row, _), *_ = trial_rows(spec_of(candidate, whole), TrainState(), 1)
        seen.append([key for key in row if key.startswith("best_val_iou_L")])
    assert seen == [["best_val_iou_L1"], ["best_val_iou_L2"]]
    costs = count_costs(space, whole.manifest, (32, 32))
    assert [list(rows) for rows in costs.values()] == [["L1"], ["L2"]]


# What it will take.


def test_time_of_the_search_is_the_sum_over_its_trials_by_the_probe_of_its_extremes(prepared):
    space = read_space(declared(widths=[[4, 6], [4, 6, 8], [8, 12]], epochs=5, max_concurrent=2))
    spec = make_spec(space.params, (), prepared)
    costs = count_costs(space, spec.manifest, (32, 32))
    work = [max(row["macs"] for row in rows.values()) for rows in costs.values()]
    probed = []

    def run(spec):
        probed.append(spec.widths)
        macs = max(row["macs"] for row in costs[network_key(spec.model, spec.widths)].values())
        return Probe(macs * 1e-6, macs * 1e-7, macs * 1e-3)

    found = estimate(space, spec, costs, 2, run)
    assert len(probed) == 2
    splits = spec.manifest.splits
    steps, images = splits["train"].num_images // space.params.train.batch_size, splits["val"].num_images
    assert found.seconds == pytest.approx(sum(5 * (steps * 1e-6 + images * 1e-7) * one for one in work) / 2)
    assert found.memory_mib == pytest.approx(max(work) * 1e-3)
    assert str(found).startswith("3 trials, 2 at once: about")


def test_a_probe_measures_this_process(prepared):
    found = probe(first_of(prepared))
    assert found.step_s > 0
    assert found.image_s > 0
    assert 50 < found.memory_mib < 20_000


def test_trials_that_the_memory_cannot_hold_at_once_are_refused_with_the_numbers(prepared, monkeypatch):
    space = read_space(declared())
    spec = make_spec(space.params, (), prepared)
    costs = count_costs(space, spec.manifest, (32, 32))
    memory_mib = iter([1.0, 1.0, 1e9, 1e9, 1e9, 1e9])
    monkeypatch.setattr("pipelines.tuning.probe.probe", lambda _spec: Probe(1.0, 1.0, next(memory_mib)))
    assert "search: 2 trials, 2 at once" in announce(space, spec, costs, 2)
    with pytest.raises(UserError, match=r"max_concurrent = 2: 2 processes of 1,000,000,000 MiB.* lower search"):
        announce(space, spec, costs, 2)
    space = read_space(declared(scheduler="pbt", space={"train.learning_rate": [1e-3, 1e-2]}))
    with pytest.raises(UserError, match=r"pbt, 5 trials at once: 5 processes of 1,000,000,000 MiB.*raise search.cpus"):
        announce(space, spec, costs, 5)


# What is read of trials, without any.


def test_reasons_are_one_line():
    assert why_failed("Traceback ...\nValueError: the reason") == "ValueError: the reason"
    assert "killed" in why_failed("The actor died unexpectedly before finishing this task.")
    assert "out of memory" in why_failed("Task was killed: ray.exceptions.OutOfMemoryError")


def search_all(params, decide, kept: dict[str, Trial] | None = None) -> dict[str, Trial]:
    """The trials of a search whose trainings `decide` stands for: it gets a proposal and gives its val IoU."""
    space, ended = read_space(params), {} if kept is None else kept
    manifest: Any = SimpleNamespace(channels=3, num_classes=1, multilabel=False, background=True)
    for batch in proposals(space, count_costs(space, manifest, (32, 32)), ended):
        for one in batch:
            if one.name not in ended:
                row = {"epoch": one.until, "val_iou_L1": decide(one), "val_iou": 0.5}
                ended[one.name] = made_of(one, [row] * one.until)
    return ended


PBT = {"searcher": "random", "num_trials": 8, "scheduler": "pbt", "epochs": 4, "grace_epochs": 2}


@pytest.mark.parametrize(
    "searched",
    [
        {"searcher": "tpe", "num_trials": 12, "max_concurrent": 3},
        {"searcher": "nsga2", "num_trials": 12, "max_concurrent": 2, "objective": "front"},
        PBT,
    ],
    ids=lambda one: one["searcher"],
)
def test_a_search_that_was_cut_anywhere_proposes_the_trials_of_one_that_was_not(searched):
    space = {"train.learning_rate": {"log": [1e-4, 1e-2]}, "augment.hue": {"int": [0, 20]}}
    params = declared(widths=[[4, 6], [4, 6, 8]], space=space, **searched)

    def decide(one: Proposal) -> float:
        return one.config["train.learning_rate"] * one.number

    whole = search_all(params, decide)
    assert len(whole) == searched["num_trials"] * (2 if searched is PBT else 1)
    for cut in (1, 5, len(whole) - 1):
        kept = dict(list(whole.items())[:cut])
        assert search_all(params, decide, kept) == whole
    # Another end of one trial is another search from there on.
    other = search_all(params, lambda one: 1.0 if one.number == 2 else decide(one))
    assert list(other)[:2] == list(whole)[:2]
    assert set(other) != set(whole)


def test_pbt_lets_the_weakest_quarter_go_on_from_the_strongest_with_changed_values():
    space = {"train.learning_rate": {"log": [1e-4, 1e-2]}, "train.head_weights": ["mean", "sum"]}
    first, then = (
        [one for one in asked if one.until == until]
        for asked in [asked_of(declared(widths=[[4, 6]], space=space, **PBT))]
        for until in (2, 4)
    )
    by_name = {one.name: one for one in first}
    taken = [one for one in then if by_name[one.begin].number != one.number]
    assert {one.number for one in taken} == {1, 2}
    assert {by_name[one.begin].number for one in taken} <= {7, 8}
    for one in taken:
        before, after = (config["train.learning_rate"] for config in (by_name[one.begin].config, one.config))
        assert before != after
        assert 1e-4 <= after <= 1e-2
    assert all(one.config == by_name[one.begin].config for one in then if one not in taken)


def test_asha_compares_with_what_earlier_commands_reached():
    space = read_space(declared(epochs=9, scheduler="asha", reduction=3))
    curve = [{"epoch": epoch, "val_iou_L1": 0.5} for epoch in (1, 2, 3)]
    for told, expected in ((0, "CONTINUE"), (3, "STOP")):
        scheduler: Any = make_scheduler(space)
        for number in range(told):
            tell_scheduler(scheduler, f"trial-{number}", curve)
        weak = SimpleNamespace(trial_id="weak")
        scheduler.on_trial_add(None, weak)
        assert scheduler.on_trial_result(None, weak, {"epoch": 1, "best_val_iou": 0.4}) == expected


def asked_of(params) -> list[Proposal]:
    asked = []
    search_all(params, lambda one: asked.append(one) or one.number / 10)
    return asked


def plant(store, canary: Canary) -> None:
    """Pickles under the names of all that a search reads, read once, or Ray Tune reads."""
    planted = pickle.dumps(canary)
    names = ["snapshot", "tuner.pkl", "trainable.pkl", "searcher-state-1.pkl", "search_gen_state-1.json"]
    names += ["experiment_state-1.json", "trial-0002-00000000.json", "trial-0002-00000000/params.pkl"]
    for name in names:
        store.write(name, planted)


@pytest.mark.parametrize("where", ["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def test_a_record_is_read_as_it_was_written_or_not_at_all_and_no_pickle_is_run(where, request, tmp_path, capsys):
    place, params = str(tmp_path / "search"), declared()
    if where == "bucket":
        bucket = request.getfixturevalue("bucket")
        place, s3 = f"s3://{bucket.name}/search", params.ingest.s3.model_copy(update={"endpoint": bucket.proxy.url})
        params = params.model_copy(update={"ingest": params.ingest.model_copy(update={"s3": s3})})
    space, store = read_space(params), open_store(place, params.ingest.s3)
    canary = Canary(tmp_path)
    plant(store, canary)
    ones = [Proposal(number, config, 2) for number, config in enumerate(space.configs or [], start=1)]
    search = Trials(space, {}, place)
    for one in ones:
        search.keep(made_of(one, [{"epoch": 1, "val_iou_L1": 0.1 + 0.2, "val_iou": float("nan")}]))
    again = Trials(space, {}, place)
    assert repr(again.ended) == repr(search.ended)  # nan is not itself
    damaged = bytearray(store.read(f"{ones[0].name}.json") or b"")
    damaged[len(damaged) // 2] ^= 1
    store.write(f"{ones[0].name}.json", bytes(damaged))
    store.write(f"{ones[0].name}/checkpoint_000001_00000000/state.pt", pickle.dumps(canary))
    assert list(Trials(space, {}, place).ended) == [ones[1].name]
    assert capsys.readouterr().out.count("skipped damaged record") == 4  # the planted one each time
    assert search.history(ones[0]) == []
    assert canary.alive


def test_best_so_far_is_of_each_depth_by_itself():
    history = [{"val_iou_L1": 0.5, "val_iou_L2": 0.1, "val_iou": 0.3}, {"val_iou_L1": 0.4, "val_iou_L2": 0.6}]
    assert best_so_far(history) == {"best_val_iou_L1": 0.5, "best_val_iou_L2": 0.6, "best_val_iou": 0.6}


# The stage, without a trial.


def run_here(project, prepared: Path) -> None:
    """The stage in this process, which starts no Ray where there is no trial."""
    folder = project.folder
    params = load_params(folder / "params.yaml")
    search(params, prepared, folder / "runs", folder / "models/search", folder / "reports")


def test_one_candidate_needs_no_trial_and_no_ray(project, prepared, capsys):
    run_here(project, prepared)
    assert architecture(project) == {"widths": [4, 6, 8], "params": {}}
    assert "the only candidate" in capsys.readouterr().out
    assert not (project.folder / "runs").exists()
    rows = table(project)
    assert [row["depth"] for row in rows] == ["L1", "L2"]
    assert rows[-1]["chosen"] == "1"
    assert "no trial" in rows[0]["reason"]
    facts = json.loads((project.folder / "reports/page.json").read_text())
    page = Outline(build_page(facts))
    assert "params.yaml names one candidate, L2 of 4 6 8, so there was no search" in page.text
    assert not {"svg", "table"} & {tag for tag, _ in page.tags}


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"space": {"train.lerning_rate": [1]}}, "did you mean train.learning_rate"),
        ({"budget": NO_LIMIT | {"parameters": 10}}, r"the nearest is L1 of \[4, 6\] with"),
        ({"widths": [[4, 6], [30000, 60000]]}, r"training step of \[30000, 60000\] needs about"),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_the_first_trial(project, prepared, search, message):
    project.set({"search": {"widths": [[4, 6], [4, 6, 8]]} | search})
    with pytest.raises(UserError, match=rf"^search\..*{message}"):
        run_here(project, prepared)
    assert not (project.folder / "runs").exists()
    assert not (project.folder / "models").exists()


def test_train_begins_anew_where_there_was_no_trial_and_not_where_its_weights_are_gone(project, prepared):
    project.set({"train": {"init": "search"}})
    run_here(project, prepared)  # one candidate
    params, path = load_params(project.folder / "params.yaml"), project.folder / "models/search/architecture.yaml"
    assert find_init(path, read_architecture(path), params) is None
    path.write_text("widths: [4, 6, 8]\ninit: init.pt\n")
    with pytest.raises(UserError, match=r"no init\.pt next to it"):
        find_init(path, read_architecture(path), params)
    path.with_name("init.pt").write_bytes(b"weights")
    found = find_init(path, read_architecture(path), params)
    assert found is not None
    assert found.file == str(path.with_name("init.pt"))
    path.write_text(f"widths: [4, 6, 8]\ninit: init.pt\ninit_sha256: {found.sha256}\n")
    assert find_init(path, read_architecture(path), params) == found
    path.with_name("init.pt").write_bytes(b"weightz")
    with pytest.raises(UserError, match=r"init\.pt: found the sha256 .*run `dvc repro search`"):
        find_init(path, read_architecture(path), params)


# Whole searches.


@pytest.mark.ray
def test_a_killed_search_goes_on_and_ends_as_one_that_was_not(project, prepared):
    space = {"train.learning_rate": [0.003, 1e30], "train.optimizer": ["sgd"]}
    project.set({"search": {"widths": [[4, 6], [4, 6, 8]], "epochs": 50, "max_concurrent": 2, "space": space}})
    project.set({"train": {"init": "search"}})
    project.environment["TMPDIR"] = str(project.folder / ("a long name" * 5))  # too long for Ray's sockets
    Path(project.environment["TMPDIR"]).mkdir()

    def ended(log: str) -> set[str]:
        return set(re.findall(r"trial (\S+): (?:epoch 50,|.*non-finite)", log))

    def begun(log: str) -> dict[str, int]:
        return {one: int(n) for one, n in re.findall(r"trial (\S+): epoch (\d+), val", log)}

    def in_the_midst(log: str) -> bool:
        """One trial has died by its loss; another has trained for some epochs, and has many to go."""
        far = {one for one, epoch in begun(log).items() if 2 <= epoch <= 30}
        return "non-finite" in log and bool(far - ended(log))

    killed = project.start("search", *arguments(prepared))
    project.wait_for(killed, "search", "epoch 1, val")
    assert_locked(killed.pid)
    project.wait_until(killed, "search", in_the_midst)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    before = project.log("search")
    assert "about" in before.splitlines()[0]  # it said what it would take
    assert not (project.folder / "models").exists()
    finished = ended(before)

    printed = project.run("search", *arguments(prepared))
    assert "the search resumes" in printed
    after = {one: int(n) for one, n in re.findall(r"trial (\S+): epoch (\d+), val", printed)[::-1]}  # the first of each
    for one in finished:
        assert after.get(one, 50) == 50  # not trained again; that it had ended may have to be told again
    cut = {one: epoch for one, epoch in begun(before).items() if one not in finished}
    assert cut
    for one, epoch in cut.items():
        assert after[one] > epoch - 2, printed  # a checkpoint of the epoch that was cut may not be whole
    rows = table(project)
    assert [row["status"] for row in rows] == ["done", "failed", "done", "done", "failed", "failed"], printed
    assert all("non-finite" in row["reason"] for row in rows if row["status"] == "failed")
    curves = table(project, "curves")
    assert [int(row["epoch"]) for row in curves if row["trial"] == "1"] == list(range(1, 51))
    assert {row["depth"] for row in curves if row["trial"] == "3"} == {"L1", "L2"}
    chosen = [row for row in rows if row["chosen"] == "1"]
    assert len(chosen) == 1
    assert float(chosen[0]["val_iou"]) == max(float(row["val_iou"]) for row in rows if row["status"] == "done")
    found = architecture(project)
    assert found["params"] == {"train.learning_rate": 0.003, "train.optimizer": "sgd"}
    weights = torch.load(project.folder / "models/search" / found["init"], weights_only=True)
    assert weights["nodes.0_0.conv1.weight"].shape[0] == found["widths"][0]

    # Another budget chooses anew among the same trials, and the rest says the same.
    project.set({"search": {"budget": NO_LIMIT | {"parameters": 1500}}})
    again = project.run("search", *arguments(prepared))
    assert "epoch 1, val IoU" not in again
    assert next(row for row in table(project) if row["chosen"] == "1")["depth"] == "L1"
    assert table(project, "curves") == curves


@pytest.mark.ray
@pytest.mark.nightly
@pytest.mark.parametrize("seen", ["gcs_server", "raylet", "ray::ImplicitFunc", "epoch 2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_search_is_cut_at_any_moment_and_goes_on(project, prepared, seen, number):
    project.set({"search": {"widths": [[4, 6], [4, 6, 8]], "epochs": 20, "max_concurrent": 2}})
    cut = project.start("search", *arguments(prepared))
    family: dict[int, psutil.Process] = {}

    def is_there(log: str) -> bool:
        family.update((one.pid, one) for one in psutil.Process(cut.pid).children(recursive=True))
        names = [" ".join(one.cmdline()[:1]) for one in family.values() if one.is_running()]
        return seen in log or any(seen in name for name in names)

    project.wait_until(cut, "search", is_there)
    (os.killpg if number == signal.SIGINT else os.kill)(cut.pid, number)
    assert cut.wait(60) == (130 if number == signal.SIGINT else -number), project.log("search")
    assert "Traceback" not in project.log("search")
    wait_for(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family.values()))
    assert not (project.folder / "models").exists()
    project.run("search", *arguments(prepared))
    assert [row["status"] for row in table(project)] == ["done"] * 3


@pytest.mark.ray
@pytest.mark.usefixtures("two_nodes")
def test_a_search_runs_on_two_nodes_and_one_that_cannot_fit_them_is_refused(project, prepared):
    project.set({"search": {"widths": [[4, 6], [4, 6, 8]], "cpus_per_worker": 2, "max_concurrent": 2}})
    printed = project.run("search", *arguments(prepared), expect=2)
    assert "need 4 cores, and the cluster has 2; lower search.max_concurrent" in printed
    assert "Traceback" not in printed
    project.set({"search": {"cpus_per_worker": 1, "num_workers": 2, "max_concurrent": 1, "epochs": 2}})
    printed = project.run("search", *arguments(prepared))  # each trial has a worker on each node
    assert [row["status"] for row in table(project)] == ["done"] * 3, printed
    assert len(table(project, "curves")) == 2 + 2 * 2


@pytest.mark.ray
def test_asha_ends_weak_trials_early_and_a_process_that_is_killed_is_one_dead_trial(two_nodes, project, prepared):
    space = {"train.learning_rate": {"log": [1e-7, 1e-2]}}
    asha = {"scheduler": "asha", "reduction": 2, "epochs": 8, "searcher": "random", "num_trials": 6, "space": space}
    project.set({"search": {"widths": [[4, 6]], "max_concurrent": 1} | asha})
    started = project.start("search", *arguments(prepared))
    project.wait_for(started, "search", "epoch 2,")
    os.kill(two_nodes.trials()[0], signal.SIGKILL)
    assert started.wait(400) == 0, project.log("search")
    rows = table(project)
    assert len(rows) == 6
    lines = re.findall(r"trial (\S+): epoch", project.log("search"))
    assert len(list(itertools.groupby(lines))) == len(set(lines)), lines  # one at a time, as max_concurrent says
    by_status = {status: [row for row in rows if row["status"] == status] for status in ("done", "stopped", "failed")}
    assert len(by_status["failed"]) == 1, project.log("search")
    assert "killed" in by_status["failed"][0]["reason"]
    assert by_status["stopped"], rows
    assert all("early by ASHA" in row["reason"] for row in by_status["stopped"])
    assert sum(int(row["epochs"]) for row in rows) < 6 * 8
    assert [row["train.learning_rate"] for row in rows] == [
        str(decode(one)["train.learning_rate"])
        for one in read_space(declared(widths=[[4, 6]], **{key: asha[key] for key in asha})).configs or []
    ]


@pytest.mark.ray
@pytest.mark.nightly
@pytest.mark.usefixtures("two_nodes")
def test_nsga2_looks_for_a_front_and_the_same_seed_gives_the_same_trials_whatever_was_killed(project, prepared):
    space = {"train.learning_rate": {"log": [1e-4, 1e-2]}}
    drawn = {"searcher": "nsga2", "num_trials": 4, "objective": "front", "space": space, "epochs": 1}
    project.set({"search": {"widths": [[4, 6], [4, 6, 8], [8, 12]], "max_concurrent": 2} | drawn})
    printed = project.run("search", *arguments(prepared))
    rows = table(project)
    assert len({row["trial"] for row in rows}) == 4, printed
    assert any(row["on_front"] == "1" for row in rows)
    chosen = next(row for row in rows if row["chosen"] == "1")
    best = max(float(row["val_iou"]) for row in rows)
    assert float(chosen["val_iou"]) >= best - 0.01
    keys = ("widths", "depth", "val_iou", "train.learning_rate")
    first = sorted(tuple(row[key] for key in keys) for row in rows)
    shutil.rmtree(project.folder / "models")
    stopped = project.start("search", *arguments(prepared, "other runs"))
    project.wait_for(stopped, "search", "epoch 1, val")
    os.killpg(stopped.pid, signal.SIGINT)  # Ctrl-C: no end of a search, as Tune has it
    assert stopped.wait(60) == 130, project.log("search")
    assert project.log("search").splitlines()[-1] == "interrupted; rerun the command to resume"
    assert "Traceback" not in project.log("search")
    assert not (project.folder / "models").exists()
    [kept] = (project.folder / "other runs").glob("search-*/")
    for one in kept.glob("trial-*.json"):
        one.write_bytes(b"")
    plant(open_store(str(kept), load_params(project.folder / "params.yaml").ingest.s3), Canary(project.folder))
    assert "the search resumes" in project.run("search", *arguments(prepared, "other runs"))
    assert sorted(tuple(row[key] for key in keys) for row in table(project)) == first
    assert Canary(project.folder).alive


@pytest.mark.ray
@pytest.mark.nightly  # nsga2 is the other searcher of Optuna's
@pytest.mark.usefixtures("two_nodes")
def test_tpe_searches_until_the_hours_are_over_and_keeps_the_best_so_far(project, prepared):
    space = {"train.learning_rate": {"log": [1e-4, 1e-2]}}
    drawn = {"searcher": "tpe", "num_trials": 1000, "epochs": 3, "max_hours": 25 / 3600, "space": space}
    project.set({"search": {"widths": [[4, 6], [4, 6, 8]], "max_concurrent": 2} | drawn})
    printed = project.run("search", *arguments(prepared))
    rows = table(project)
    done = [row for row in rows if row["status"] == "done"]
    assert done, printed
    assert len({row["trial"] for row in rows}) < 1000
    assert {row["status"] for row in rows} <= {"done", "stopped"}
    assert all("search.max_hours" in row["reason"] for row in rows if row["status"] == "stopped")
    chosen = next(row for row in rows if row["chosen"] == "1")
    assert float(chosen["val_iou"]) == max(float(row["val_iou"]) for row in rows if row["val_iou"])
    assert architecture(project)["params"] == {"train.learning_rate": float(chosen["train.learning_rate"])}
    again = project.run("search", *arguments(prepared))  # the time limit is reached: nothing is trained
    assert "epoch 3, val IoU" not in again
    assert table(project) == rows


@pytest.mark.ray
@pytest.mark.nightly  # asha is the scheduler of every day's tests
@pytest.mark.usefixtures("two_nodes")
def test_pbt_lets_weak_trials_go_on_from_strong_ones(project, prepared):
    space = {"train.learning_rate": {"log": [1e-9, 1e-2]}}
    drawn = {"searcher": "random", "num_trials": 4, "scheduler": "pbt", "space": space, "epochs": 4, "seed": 3}
    drawn |= {"grace_epochs": 2}
    project.set({"search": {"widths": [[4, 6]], "max_concurrent": 2} | drawn})
    printed = project.run("search", *arguments(prepared))
    rows = table(project)
    assert [row["status"] for row in rows] == ["done"] * 4, printed
    began = {decode(one)["train.learning_rate"] for one in read_space(declared(widths=[[4, 6]], **drawn)).configs or []}
    ended = {float(row["train.learning_rate"]) for row in rows}
    assert ended != began  # at least one took over another's weights with a changed rate
    assert all(1e-9 <= rate <= 1e-2 for rate in ended)
    assert {row["epochs"] for row in rows} == {"4"}
