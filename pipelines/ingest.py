"""Stage ingest: raw images and masks from the source, unchanged, and a manifest of what they are."""

import argparse
from pathlib import Path

from pipelines.files import replacing, sha256, write_json
from pipelines.params import Ingest, load_params
from pipelines.sources import fetch
from pipelines.stage import run_command


def ingest(params: Ingest, out: Path) -> dict:
    """Write the raw files and manifest.json to the folder `out`, whole or not at all; return the manifest.

    The manifest holds nothing of this machine or hour but the location in `params`: the same data give the
    same bytes.

    Raises:
        UserError: a source that is missing, empty, unsafe or of another layout.
    """
    with replacing(out) as partial:
        source = fetch(params, partial)
        paths = sorted(path for path in partial.rglob("*") if path.is_file())
        files = [
            {"key": path.relative_to(partial).as_posix(), "size": path.stat().st_size, "sha256": sha256(path)}
            for path in paths
        ]
        files.sort(key=lambda file: file["key"])
        manifest = {"source": source, "files": files}
        write_json(partial / "manifest.json", manifest)
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the raw files")
    arguments = parser.parse_args()
    params = load_params().ingest
    files = ingest(params, arguments.out)["files"]
    size_mib = sum(file["size"] for file in files) / 2**20
    source = params.kind if params.kind == "synthetic" else params.location
    print(f"ingest: {len(files)} files, {size_mib:.1f} MiB, from {source} to {arguments.out}")


if __name__ == "__main__":
    run_command(main)
