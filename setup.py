"""Adds to a wheel what was recorded, and an experiment's notebook, which then need no checkout."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
RESULTS = ("curves/*.csv", "curves/*.json", "replays/*.csv", "live/*.csv")
PACKED = (*(f"results/{pattern}" for pattern in RESULTS), "notebooks/experiment.ipynb")


class BuildWithRecorded(build_py):
    """Copies what is packed to ``proxyhpo/recorded``, where nothing is found beside it."""

    def run(self) -> None:
        """Build the package, then add to it."""
        super().run()
        if self.editable_mode:  # an editable install reads the checkout's own
            return
        for pattern in PACKED:
            for file in ROOT.glob(pattern):
                inside = Path(*file.relative_to(ROOT).parts[1:])
                target = Path(self.build_lib, "proxyhpo", "recorded", inside)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


setup(cmdclass={"build_py": BuildWithRecorded})
