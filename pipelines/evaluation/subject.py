"""What is evaluated: a network and test images, which were checked to belong together."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.core.tables import read_rows
from unetpp.data.arrow_split import Split
from unetpp.data.manifest import Manifest, read_manifest
from unetpp.errors import UserError, said
from unetpp.models.model_file import Trained, load_model


def read_groups(prepared: Path, ids: list[str]) -> list[str]:
    """The group of each image, from split.csv of a prepared folder.

    Raises:
        UserError: no such file, or these images are not in it.
    """
    path = prepared / "split.csv"
    try:
        groups = {row["id"]: row["group"] for row in read_rows(path)}
        return [groups[id] for id in ids]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected the groups of the images: run `dvc repro prepare`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({said(error)}): run `dvc repro prepare`") from None
    except KeyError as error:
        raise UserError(
            f"{path}: found no column or image {error}; expected a row for each image of test.arrow with the columns "
            "id and group: run `dvc repro prepare`"
        ) from None


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a network, and test images that were not used to train or choose it."""

    trained: Trained
    prepared: Path
    manifest: Manifest
    split: Split
    groups: list[str]  # of each image

    @classmethod
    def open(cls, prepared: Path, model: Path) -> "Subject":
        """
        Raises:
            UserError: model or data are missing or damaged, do not belong together, or there is no test image.
        """
        trained, manifest, path = load_model(model), read_manifest(prepared), prepared / "test.arrow"
        network = trained.network
        found = {name: getattr(network, name) for name in ("num_classes", "multilabel", "background")}
        for key, value in (found | {"channels": network.in_channels}).items():
            if (expected := getattr(manifest, key)) != value:
                raise UserError(
                    f"{model}: found a network with {key} {value}; expected {expected}, as in "
                    f"{prepared}/manifest.json: train again on these data"
                )
        manifest.check(prepared, manifest.full_val, "test")  # val chooses thresholds
        split = Split(path)
        if len(split) == 0:
            raise UserError(f"{path}: found no images; raise prepare.shares.test, or add images")
        return cls(trained, prepared, manifest, split, read_groups(prepared, split.ids))

    def open_val(self) -> Split:
        """The val split at the images' own sizes."""
        return Split(self.prepared / f"{self.manifest.full_val}.arrow")
