"""What candidates cost is known before any training, and decides what is left out or refused."""

import json

import pytest
import torch

from pipelines.storage.places import Folder
from pipelines.storage.run_store import RunStore
from pipelines.tuning import candidate_costs as costs_module
from pipelines.tuning.candidate_costs import check_budget, check_memory, count_costs, is_within, key_of, measure_costs
from pipelines.tuning.space import read_space
from tests.pipelines.tuning.declared import NO_LIMIT, declared
from unetpp.data.manifest import read_manifest
from unetpp.errors import UserError
from unetpp.network.model import NestedUNet
from unetpp.network.profiling import count_macs, count_parameters
from unetpp.network.pruning import prune

CPU = torch.device("cpu")


@pytest.fixture
def manifest(prepared):
    return read_manifest(prepared)


def test_counts_are_those_of_the_pruned_networks_themselves(manifest):
    space = read_space(declared(space={"model.upsampling": ["bilinear", "transposed"]}))
    costs = count_costs(space, manifest, (30, 30))  # no multiple of 4: padded as Segmenter does
    assert len(costs) == 4
    for one in space.candidates:
        network = NestedUNet(one.widths, upsampling=one.values["model.upsampling"]).eval()
        for depth in network.depths:
            pruned = prune(network, depth)
            row = costs[key_of(one)][f"L{depth}"]
            assert row["parameters"] == count_parameters(pruned)
            step = 2**network.depth
            assert row["macs"] == count_macs(pruned, torch.rand(1, 3, -(-30 // step) * step, -(-30 // step) * step))


def test_what_was_measured_once_is_not_measured_again(manifest, tmp_path, monkeypatch):
    space = read_space(declared())
    costs = count_costs(space, manifest, (32, 32))
    measured = measure_costs(space, costs, manifest, (32, 32), CPU, RunStore(Folder(tmp_path)))
    depths = [row for rows in measured.values() for row in rows.values()]
    assert len(depths) == 3
    assert all(row["latency_ms"] > 0 and row["memory_mib"] > 0 for row in depths)
    monkeypatch.setattr(costs_module, "measure_latency", None)  # a call of it would fail
    assert measure_costs(space, costs, manifest, (32, 32), CPU, RunStore(Folder(tmp_path))) == measured
    assert len(json.loads((tmp_path / "costs.json").read_text())) == 2


def test_widths_of_which_no_depth_is_within_the_budget_are_left_out(manifest):
    params = declared(widths=[[4, 6, 8], [32, 64]], budget=NO_LIMIT | {"parameters": 2000})
    space = read_space(params)
    costs = count_costs(space, manifest, (32, 32))
    kept = check_budget(space, costs)
    assert kept.widths == [(4, 6, 8)]  # its L1 alone is
    rows = costs[key_of(space.candidates[0])]
    assert [is_within(row, params.search.budget) for row in rows.values()] == [True, False]


def test_a_budget_that_no_candidate_meets_is_refused_with_the_nearest(manifest):
    budget = NO_LIMIT | {"macs": 1000, "parameters": 100}
    space = read_space(declared(widths=[[4, 6, 8], [8, 16]], budget=budget))
    asked = r"search\.budget: .*macs at most 1000, parameters at most 100"
    with pytest.raises(UserError, match=asked + r".* L1 of \[4, 6, 8\] with [\d.]+ k parameters, [\d.]+ [kM] MACs"):
        check_budget(space, count_costs(space, manifest, (32, 32)))


def test_widths_that_cannot_fit_the_memory_are_refused_with_the_numbers_and_nothing_is_allocated(manifest):
    space = read_space(declared(widths=[[4, 6], [20000, 40000, 80000]]))
    with pytest.raises(UserError, match=r"step of \[20000, 40000, 80000\] needs about [\d,]+ MiB .* has 4,096 MiB"):
        check_memory(space, manifest, 4096, "this machine")
    check_memory(space.without([(20000, 40000, 80000)]), manifest, 4096, "this machine")
