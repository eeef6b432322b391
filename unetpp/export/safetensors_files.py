"""A depth of a trained network as files that others load: safetensors with a JSON beside it.

Our own format: a folder with

- `config.json`: {"format": "unetpp", "version": 1, "network": the keywords of NestedUNet, "size": px that images were
  resized to for training or null, "info": where the network comes from, "sha256": of the weights}
- `model.safetensors`: the weights by NestedUNet's names, float32, batch norm folded into the convolutions.

It holds no code, and is read with torch, numpy and safetensors alone.
"""

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from unetpp.errors import UserError
from unetpp.inference.model_file import Trained
from unetpp.inference.segmenter import Segmenter
from unetpp.network.folding import fold
from unetpp.network.model import NestedUNet
from unetpp.network.pruning import prune

FORMAT, VERSION = "unetpp", 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def folded(trained: Trained, depth: int | None = None, keep_heads: bool = False) -> Trained:
    """The depth that an export holds: pruned to it, and batch norm folded.

    Args:
        depth: by default the deepest.
        keep_heads: keep the heads of the shallower depths too, so that it can still be pruned and averaged.

    Raises:
        UserError: it cannot be pruned to that depth.
    """
    depth = trained.network.depth if depth is None else depth
    keep_heads = keep_heads and len(trained.depths) > 1
    return Trained(fold(prune(trained.network, depth, keep_heads)), trained.size, trained.info)


def save_safetensors(trained: Trained, depth: int | None, folder: str | Path, keep_heads: bool = False) -> None:
    """Write `folder/model.safetensors` and then `folder/config.json` of a depth (see `folded`).

    The same network gives the same bytes. The caller sees to it that the folder appears whole.

    Raises:
        UserError: it cannot be pruned to that depth.
    """
    one, folder = folded(trained, depth, keep_heads), Path(folder)
    content = save({key: value.cpu().contiguous() for key, value in one.network.state_dict().items()})
    config = {
        "format": FORMAT,
        "version": VERSION,
        "network": one.network.config(),
        "size": one.size,
        "info": one.info,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(content)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_safetensors(folder: str | Path) -> Trained:
    """What `save_safetensors` wrote, after its hash was checked, with all the heads that it holds.

    Raises:
        UserError: no such folder, not this format, of another version, or weights of other bytes than config.json says.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: no such file; expected a folder that `save_safetensors` wrote")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind, version, digest = (config.get(key) for key in ("format", "version", "sha256"))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{folder / CONFIG}: not the JSON of an export ({error}); export again") from None
    if (kind, version) != (FORMAT, VERSION):
        raise UserError(
            f"{folder / CONFIG}: found format {kind!r} version {version!r}; this version of unetpp reads {FORMAT!r} "
            f"version {VERSION}: export again with it"
        )
    content = (folder / WEIGHTS).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise UserError(
            f"{folder / WEIGHTS}: found sha256 {found[:12]}; expected {str(digest)[:12]}, as in {CONFIG}: the file is "
            "damaged or of another export; copy both again, or export again"
        )
    try:
        network = NestedUNet(**config["network"])
        network.load_state_dict(load(content))
        return Trained(network.eval(), config["size"], config["info"])
    except (SafetensorError, RuntimeError, TypeError, KeyError, UserError) as error:
        raise UserError(
            f"{folder}: the weights are not those of the network that {CONFIG} names "
            f"({str(error).splitlines()[0][:200]}); export again"
        ) from None


def load_safetensors(folder: str | Path) -> Segmenter:
    """The exported depth in eval mode: images (N, C, H, W) float32 in [0, 1] of any size to probabilities.

    Raises:
        UserError: as `read_safetensors`.
    """
    return read_safetensors(folder).segmenter()
