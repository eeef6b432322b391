"""Stage ingest: copies raw images and masks from the source, unchanged, and writes a manifest of them."""

import argparse
import dataclasses
from contextlib import ExitStack
from pathlib import Path

from pipelines import detail
from pipelines.core.command import run_command
from pipelines.core.files import replacing, write_json
from pipelines.core.outputs import check_outputs
from pipelines.core.params import load_params
from pipelines.core.redaction import redacted
from pipelines.core.sections.ingest import Ingest
from pipelines.core.temporary_folders import scratch
from pipelines.storage.sources import fetch
from unetpp.files import sha256


def ingest(params: Ingest, out: Path, cache: Path | None = None) -> dict:
    """Write the raw files and manifest.json to the folder `out`, completely or not at all; return the manifest.

    The manifest is independent of machine and time, except for the location in `params`: the same data give the
    same bytes.

    Args:
        cache: keeps downloads for the next run. It is not an output of the stage, since DVC deletes those before a
            run. None: nothing is kept.

    Raises:
        UserError: the source is missing, empty, unsafe or of another layout, or the disk is full.
    """
    with replacing(out) as partial, ExitStack() as stack:
        if cache is None:
            cache = stack.enter_context(scratch(out.parent))
        source = fetch(params, partial, cache)
        files = []
        for path in sorted(path for path in partial.rglob("*") if path.is_file()):
            key = path.relative_to(partial).as_posix()
            # Downloads have been hashed already.
            facts = source.facts.get(key) or {"sha256": sha256(path)}
            files.append({"key": key, "size": path.stat().st_size, **facts})
        files.sort(key=lambda file: file["key"])
        layout = {"layout": dataclasses.asdict(source.layout)} if source.layout else {}
        manifest = {"source": source.description, **layout, "files": files}
        write_json(partial / "manifest.json", manifest)
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the raw files")
    parser.add_argument("--cache", type=Path, required=True, help="folder that keeps downloads for the next run")
    arguments = parser.parse_args()
    params = load_params().ingest
    source = [Path(str(params.location)).expanduser()] if params.kind in ("folder", "zip", "tar") else []
    check_outputs([arguments.out], inputs=source, within=True)
    manifest = ingest(params, arguments.out, arguments.cache)
    files, layout = manifest["files"], manifest.get("layout")
    if layout and layout["kind"] == "pairs":
        detail(f"ingest: images are {layout['images']}, masks {layout['masks']}")
    size_mib = sum(file["size"] for file in files) / 2**20
    source = params.kind if params.kind == "synthetic" else redacted(str(params.location))
    print(f"ingest: {len(files)} files, {size_mib:.1f} MiB, from {source} to {arguments.out}")


if __name__ == "__main__":
    run_command(main)
