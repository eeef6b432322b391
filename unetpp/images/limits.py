"""The limits of decoding: sizes, pages and tags for which a picture file is refused before it is decoded."""

from dataclasses import dataclass
from pathlib import Path

from unetpp.errors import FileError

EXPECTED = "expected a whole PNG, TIFF, JPEG, BMP, WEBP or GIF file"


@dataclass(frozen=True)
class Limits:
    """The limits of decoding, checked against the header. The defaults are for use without params."""

    max_pixels: int = 178_956_970  # Pillow's own limit: half a gigabyte of RGB
    max_file_mib: int = 2048
    name: str = "prepare.max_pixels"  # of the first, as the user sets it


def broken(path: Path, error: Exception) -> FileError:
    """The refusal of a file on which a decoder failed."""
    what = " ".join(str(error).split())[:200] or type(error).__name__
    return FileError(path, f"found a broken file ({what}); {EXPECTED}", "fetch it again or remove it")


def check_size(path: Path, limits: Limits) -> None:
    """Refuse a missing or empty file, and one with more bytes than the limit."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise FileError(path, f"found {found}; {EXPECTED}", "correct the name")
    size = path.stat().st_size
    if size == 0:
        raise FileError(path, f"found an empty file (0 bytes); {EXPECTED}", "fetch it again or remove it")
    if size > limits.max_file_mib * 2**20:
        raise FileError(
            path,
            f"found {size / 2**20:.0f} MiB; expected at most prepare.max_file_mib = {limits.max_file_mib}",
            "cut it up, or raise the limit",
        )


def check_pixels(path: Path, width: int, height: int, limits: Limits) -> None:
    """Refuse a picture without pixels, and one with more than the limit."""
    if width < 1 or height < 1:
        raise broken(path, ValueError(f"it declares {width}x{height} px"))
    if width * height > limits.max_pixels:
        raise FileError(
            path,
            f"found too many pixels ({width}x{height} px); expected at most {limits.name} = {limits.max_pixels}",
            "cut it into tiles, or raise the limit",
        )


def check_upright(path: Path, orientation: int) -> None:
    """Refuse pictures that a tag rotates."""
    if orientation not in (0, 1):  # some tools write 0 for "unspecified"
        raise FileError(
            path,
            f"found the orientation tag {orientation}, so viewers rotate it and an image and its mask may disagree; "
            "expected upright pixels",
            "rotate the pixels themselves and remove the tag, in image and mask alike",
        )


def check_pages(path: Path, pages: int, number: int | None, hint: str) -> None:
    """Refuse several pages if none is chosen, and a chosen page that does not exist."""
    if number is None and pages > 1:
        raise FileError(path, f"found {pages} pages; expected one", f"save each page as a separate file{hint}")
    if number is not None and not 1 <= number <= pages:
        raise FileError(
            path, f"found {pages} pages; expected page {number} among them", "save the volume as TIFF again"
        )
