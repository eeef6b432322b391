"""Latency and peak memory of the pruned depths of UNet++, on this machine: they do not depend on the weights.

python -m studies.paper.cost
"""

import torch

from pipelines.core.files import write_json
from pipelines.evaluation.depth_costs import describe_machine, measure_cost
from studies.paper.records import RESULTS
from studies.paper.run import network_of, read_study
from unetpp.models.model_file import Trained
from unetpp.network.model import NestedUNet

SIZE_PX, ROUNDS, BATCH = 96, 50, 8


def main() -> None:
    study, cpu = read_study(), torch.device("cpu")
    for scale in study["widths"]:
        widths, model = network_of(study, "unet_pp_ds", scale)
        network = NestedUNet(widths, **model).eval()
        depths = measure_cost(Trained(network, SIZE_PX), (SIZE_PX, SIZE_PX), ROUNDS, BATCH, cpu)
        write_json(RESULTS / f"cost-{scale}.json", {"depths": depths, "machine": describe_machine(cpu)})
        print(f"wrote {RESULTS / f'cost-{scale}.json'}")


if __name__ == "__main__":
    main()
