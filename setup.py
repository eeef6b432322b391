"""What the wheel holds beside the packages: files of the repository from which `unetpp init` makes projects."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ["dvc.yaml", "params.yaml", ".gitignore", ".dvcignore", ".dvc/config", *Path().glob(".dvc/plots/*.*")]


class Build(build_py):
    """A copy of these files into pipelines/project/shipped; an editable install reads the repository's own."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for name in SHIPPED:
                target = Path(self.build_lib, "pipelines/project/shipped", name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(name, target)


setup(cmdclass={"build_py": Build})
