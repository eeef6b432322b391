"""params.yaml as it is shipped, for a reading."""

from pathlib import Path

from pipelines.core.params import Params, load_params

ROOT = Path(__file__).resolve().parents[2]


def make_params(num_workers: int, threads: int, num_epochs: int) -> Params:
    """params.yaml as it is shipped, for synthetic images of 96x96."""
    params = load_params(ROOT / "params.yaml")
    train = {"num_workers": num_workers, "cpus_per_worker": threads, "epochs": num_epochs, "init": None}
    return params.model_copy(
        update={
            "train": params.train.model_copy(update=train),
            "registry": params.registry.model_copy(update={"live": False}),
        }
    )
