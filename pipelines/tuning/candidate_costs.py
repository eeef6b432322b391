"""The inference costs of every depth of every candidate, before anything is trained; the budget; the memory check.

Parameters and MACs are counted on networks without weights. Latency and the memory of a forward pass are measured once
per network on the training device, and cached in a file, so that the same search never measures them again.
"""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipelines.console.progress import watched
from pipelines.core.numbers import short
from pipelines.core.sections.search import Budget
from pipelines.core.sections.train import Model
from pipelines.storage.run_store import RunStore
from pipelines.training.spec import build_network
from pipelines.tuning.space import Candidate, Space, Widths
from unetpp.data.manifest import Manifest
from unetpp.errors import UserError
from unetpp.files import parse_json
from unetpp.images.frame import Size, as_size, plain, say_size
from unetpp.models.segmenter import Segmenter
from unetpp.network.profiling import (
    count_macs,
    count_parameters,
    estimate_training_mib,
    measure_latency,
    measure_peak_memory_mib,
)
from unetpp.network.pruning import prune

KEPT = "costs.json"
ROUNDS = 10  # of measuring latency; the depths take turns in each
Costs = dict[str, dict[str, dict[str, float]]]  # by `network_key`, then "L1" ..., then the name of the cost


def network_key(model: Model, widths: Sequence[int]) -> str:
    """A key of everything on which a network's costs depend."""
    used = {key: value for key, value in model.build.items() if key != "dropout"}
    return json.dumps([list(widths), used], sort_keys=True)


def key_of(candidate: Candidate) -> str:
    """`network_key` of a candidate's network."""
    return network_key(candidate.params.model, candidate.widths)


def count_costs(space: Space, manifest: Manifest, size: Size) -> Costs:
    """Parameters and MACs of every depth of every network of the space."""
    costs: Costs = {}
    for candidate in watched(space.networks, "counting MACs, networks"):
        with torch.device("meta"):
            network = build_network(candidate.params.model, candidate.widths, manifest).eval()
            step = 2**network.depth
            example = torch.empty(1, network.in_channels, *(-(-side // step) * step for side in size))
            pruned = {f"L{depth}": prune(network, depth) for depth in network.depths}
            costs[key_of(candidate)] = {
                name: {"parameters": count_parameters(one), "macs": count_macs(one, example)}
                for name, one in pruned.items()
            }
    return costs


def measure_costs(
    space: Space, costs: Costs, manifest: Manifest, size: Size, device: torch.device, runs: RunStore
) -> Costs:
    """The costs with `latency_ms` and `memory_mib` of one image on the device; a file next to the runs caches them."""
    torch.set_num_threads(space.params.search.cpus_per_worker)
    there = parse_json(runs.read(KEPT) or "{}", KEPT, "remove it: the costs are measured again")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    facts = [plain(size), manifest.channels, manifest.num_classes, name, platform.node()]
    facts += [torch.get_num_threads(), torch.__version__]
    measured: Costs = {}
    for candidate in watched(space.networks, "measuring latency, networks"):
        key = key_of(candidate)
        digest = hashlib.sha256(json.dumps([key, *facts]).encode()).hexdigest()[:24]
        if digest not in there:
            network = build_network(candidate.params.model, candidate.widths, manifest).to(device).eval()
            modules = {f"L{depth}": Segmenter(prune(network, depth)).eval() for depth in network.depths}
            example = torch.rand(1, network.in_channels, *size, device=device)
            latencies = measure_latency(modules, example, ROUNDS)
            there[digest] = {
                name: {
                    "latency_ms": round(latencies[name].median_ms, 3),
                    "memory_mib": round(measure_peak_memory_mib(module, example), 3),
                }
                for name, module in modules.items()
            }
            runs.write(KEPT, json.dumps(there, indent=2).encode())
        measured[key] = {name: row | there[digest][name] for name, row in costs[key].items()}
    return measured


def is_within(row: Mapping[str, Any], budget: Budget) -> bool:
    """Whether a depth is within every limit of the budget for which its cost is known."""
    limits = budget.model_dump()
    return all(limit is None or row.get(name) is None or row[name] <= limit for name, limit in limits.items())


def check_budget(space: Space, costs: Costs) -> Space:
    """The space without the widths that have no depth within the budget.

    Raises:
        UserError: none are left; the message names the nearest with its numbers.
    """
    budget = space.params.search.budget
    limits = {name: limit for name, limit in budget.model_dump().items() if limit is not None}
    fitting: set[Widths] = set()
    nearest: tuple[float, str] = (float("inf"), "")
    for candidate in space.networks:
        for name, row in costs[key_of(candidate)].items():
            if is_within(row, budget):
                fitting.add(candidate.widths)
            excess = max((row[limit] / most for limit, most in limits.items() if limit in row), default=0)
            if excess < nearest[0]:
                nearest = excess, f"{name} of {list(candidate.widths)} with {describe(row)}"
    if not fitting:
        asked = ", ".join(f"{name} at most {limit:g}" for name, limit in limits.items())
        raise UserError(
            f"search.budget: no depth of any candidate meets {asked}; the nearest is {nearest[1]}: raise the limit, or "
            "add smaller widths to search.widths"
        )
    return space.without([widths for widths in space.widths if widths not in fitting])


def describe(row: Mapping[str, Any]) -> str:
    """The costs of a depth, as text."""
    said = f"{short(row['parameters'])} parameters, {short(row['macs'])} MACs"
    if row.get("latency_ms") is not None:
        said += f", {row['latency_ms']:.1f} ms, {row['memory_mib']:.1f} MiB per pass"
    return said


def check_memory(space: Space, manifest: Manifest, there_mib: float, where: str) -> None:
    """Refuse widths for which one process's training step cannot fit in memory, by an estimate.

    Raises:
        UserError: names the widths, the memory that they need and that is available.
    """
    batches = space.dimensions.get("train.batch_size", [json.dumps(space.params.train.batch_size)])
    largest = max(json.loads(one) for one in batches) if isinstance(batches, list) else batches["int"][1]
    batch = max(1, largest // space.params.search.num_workers)
    size = as_size(space.params.train.crop_px) or as_size(manifest.size) or (256, 256)
    for candidate in space.networks:
        with torch.device("meta"):
            network = build_network(candidate.params.model, candidate.widths, manifest)
        needed = estimate_training_mib(network, batch, size)
        if needed > there_mib:
            raise UserError(
                f"search.widths: a training step of {list(candidate.widths)} needs about {needed:,.0f} MiB at "
                f"{batch} images of {say_size(size)} px per process, and {where} has {there_mib:,.0f} MiB: use "
                "narrower or fewer widths, or lower train.batch_size"
            )
