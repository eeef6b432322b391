"""Latency and peak memory of the pruned depths of UNet++, on this machine: they do not depend on the weights.

python -m studies.paper.cost
"""

import torch

from pipelines.depth_costs import describe_machine, measure_cost
from pipelines.files import write_json
from studies.paper.run import RESULTS, network_of, read_study
from unetpp.inference import Trained
from unetpp.model import NestedUNet

SIZE_PX, ROUNDS, BATCH = 96, 50, 8


def main() -> None:
    study, cpu = read_study(), torch.device("cpu")
    for scale in study["widths"]:
        widths, model = network_of(study, "unet_pp_ds", scale)
        network = NestedUNet(widths, **model).eval()
        depths = measure_cost(Trained(network, SIZE_PX), SIZE_PX, ROUNDS, BATCH, cpu)
        write_json(RESULTS / f"cost-{scale}.json", {"depths": depths, "machine": describe_machine(cpu)})
        print(f"wrote {RESULTS / f'cost-{scale}.json'}")


if __name__ == "__main__":
    main()
