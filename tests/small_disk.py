"""A file system of a few MiB that tests fill up: a tmpfs, mounted by who may mount."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SmallDisk:
    """An empty tmpfs at `folder`. Where nothing can be mounted (a container without the capability), a limit to the
    size of a file, which programs are told of by another error number."""

    def __init__(self, folder: Path, size_mib: int):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=700", "tmpfs", str(folder)]
        self.is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0

    @contextmanager
    def full(self, free_kib: int) -> Iterator[list[str]]:
        """No more than so many KiB are free in the block; commands in it begin with what is yielded."""
        if not self.is_mounted:
            yield ["prlimit", f"--fsize={free_kib * 1024}"]
            return
        filler = self.folder / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(4096, shutil.disk_usage(self.folder).free - free_kib * 1024))
        try:
            yield []
        finally:
            filler.unlink()

    def close(self) -> None:
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
