"""Where raw images come from: a folder, a zip, or the built-in generator. Files are written as they are.

A zip is a stranger's: every entry is checked by name before the first byte is written.
"""

import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import cv2

from pipelines.files import sha256
from pipelines.layouts import check_names, find_layout, is_junk, is_picture, list_names
from pipelines.params import Ingest, Synthetic
from pipelines.synthetic import make_image
from unetpp.errors import UserError

# Limits of a zip. The largest public set of this kind (BBBC038) has 30,000 entries and 400 MB.
MAX_ENTRIES = 1_000_000
MAX_ENTRY_BYTES = 4 * 2**30
MAX_TOTAL_BYTES = 256 * 2**30
# Deflate cannot pass 1032; raw masks come near 100. Small archives may be anything.
MAX_RATIO = 200
RATIO_MATTERS_BYTES = 2**30


def fetch(params: Ingest, out: Path) -> dict:
    """Write the raw files of the source that `params` names into the new folder `out`; describe the source.

    Raises:
        UserError: names the path or the entry, what was found, what was expected.
    """
    out.mkdir(parents=True)
    if params.kind == "synthetic":
        return _write_synthetic(params.synthetic, out)
    location = Path(str(params.location)).expanduser()
    if params.kind == "folder":
        _copy_folder(location, out)
        return {"kind": "folder", "location": params.location}
    _extract_zip(location, out)
    return {"kind": "zip", "location": params.location, "sha256": sha256(location)}


def _write_synthetic(params: Synthetic, out: Path) -> dict:
    (out / "images").mkdir()
    (out / "masks").mkdir()
    for index in range(params.num_images):
        image, instances, _ = make_image(index, params.seed, params.size_px)
        if image.ndim == 3:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)  # OpenCV writes BGR
        cv2.imwrite(str(out / f"images/nuclei_{index:05d}.png"), image)
        cv2.imwrite(str(out / f"masks/nuclei_{index:05d}.png"), instances)
    return {"kind": "synthetic", "location": None, **params.model_dump()}


def _copy_folder(root: Path, out: Path) -> None:
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        hint = "; for a zip set ingest.kind=zip" if root.suffix.lower() == ".zip" else ""
        raise UserError(f"{root}: found {found}; ingest.location must be a folder with images/ and masks/{hint}")
    names = list_names(root)
    layout = check_names(names, str(root))
    for name in _relevant(names, layout):
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            # A copy and no hard link: what the user later does to their files must not reach ours.
            shutil.copyfile(root / name, target)
        except OSError as error:
            raise UserError(f"{root / name}: cannot be read ({error.strerror}); expected a readable file") from None


def _extract_zip(path: Path, out: Path) -> None:
    if not path.is_file():
        found = "a folder; for a folder set ingest.kind=folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: found {found}; ingest.location must be a zip file")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(
            f"{path}: found no whole zip file ({error}); expected one: fetch it again or unpack it and "
            "set ingest.kind=folder"
        ) from None
    with archive:
        entries = _check_entries(path, archive.infolist())
        prefix = _wrapper(list(entries))
        inner = {name.relative_to(prefix): info for name, info in entries.items() if name.is_relative_to(prefix)}
        layout = check_names(sorted(inner), str(path))
        for name in _relevant(sorted(inner), layout):
            target = out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                # The reader stops at the size that the entry declares, and checks its CRC.
                with archive.open(inner[name]) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, 2**20)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
                raise UserError(
                    f"{path}: entry {inner[name].filename!r} cannot be read ({error}); pack or fetch the zip again"
                ) from None


def _check_entries(path: Path, infos: list[zipfile.ZipInfo]) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Files of a zip by name, junk left out; refuses what could write elsewhere or fill the disk."""
    if len(infos) > MAX_ENTRIES:
        raise UserError(f"{path}: found {len(infos)} entries; expected at most {MAX_ENTRIES}: split the zip")
    total = sum(info.file_size for info in infos)
    packed = max(1, sum(info.compress_size for info in infos))
    files: dict[PurePosixPath, zipfile.ZipInfo] = {}
    seen: dict[str, str] = {}
    for info in infos:
        reason = _unsafe(info)
        if reason:
            raise UserError(f"{path}: entry {info.orig_filename!r} {reason}; pack the zip again without it")
        name = PurePosixPath(info.filename)
        if info.is_dir() or is_junk(name):
            continue
        other = seen.setdefault(str(name).casefold(), info.filename)
        if other != info.filename or name in files:
            raise UserError(f"{path}: entry {info.filename!r} clashes with {other!r} where case is ignored; rename one")
        files[name] = info
    for name in files:
        for parent in name.parents:
            if str(parent).casefold() in seen:
                raise UserError(f"{path}: entry {str(parent)!r} is a file and also the folder of {str(name)!r}")
    if total > MAX_TOTAL_BYTES or (total > RATIO_MATTERS_BYTES and total / packed > MAX_RATIO):
        largest = max(infos, key=lambda info: info.file_size)
        raise UserError(
            f"{path}: entries would grow to {total} bytes, {total / packed:.0f} times the zip, the largest "
            f"is {largest.filename!r}; expected at most {MAX_TOTAL_BYTES} bytes and {MAX_RATIO} times: "
            "unpack it yourself and set ingest.kind=folder"
        )
    return files


def _unsafe(info: zipfile.ZipInfo) -> str | None:
    """Why an entry is refused, or None."""
    name = info.orig_filename  # as stored: ZipInfo.filename is already cut at a NUL byte
    if "\0" in name or "\\" in name:
        return "has a backslash or a NUL byte in its name"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "has an absolute name"
    if ".." in name.split("/"):
        return "has .. in its name and would be written outside"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device, not a file"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.file_size > MAX_ENTRY_BYTES:
        return f"declares {info.file_size} bytes, more than {MAX_ENTRY_BYTES}"
    return None


def _wrapper(names: list[PurePosixPath]) -> PurePosixPath:
    """The single top-level folder that wraps everything, or `.` where the top level is the data."""
    heads = {name.parts[0] for name in names if len(name.parts) > 1}
    if len(heads) != 1 or heads & {"images", "masks"}:
        return PurePosixPath()
    head = PurePosixPath(heads.pop())
    inner = [name.relative_to(head) for name in names if name.is_relative_to(head) and name != head]
    # One BBBC038 sample alone looks like a wrapper around pairs; its image bears the folder's name.
    single = any(name.parts[0] == "images" and name.stem == head.name for name in inner)
    return head if find_layout(inner) and not single else PurePosixPath()


def _relevant(names: list[PurePosixPath], layout: str) -> list[PurePosixPath]:
    """The image files inside images/ and masks/; tells how many others are left out."""
    level = 0 if layout == "pairs" else 1
    inside = [name for name in names if len(name.parts) > level + 1 and name.parts[level] in ("images", "masks")]
    kept = [name for name in inside if is_picture(name)]
    if len(kept) < len(names):
        left_out = next(name for name in names if name not in set(kept))
        print(f"left out {len(names) - len(kept)} files that are no images of the set, such as {left_out}")
    return kept
