"""Adds to a wheel what was recorded, so that figures and replays need no checkout."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

RESULTS = Path(__file__).parent / "results"
RECORDED = ("curves/*.csv", "curves/*.json", "replays/*.csv", "live/*.csv")


class BuildWithRecorded(build_py):
    """Copies tables and replays to ``proxyhpo/recorded``, where nothing is found beside it."""

    def run(self) -> None:
        """Build the package, then add to it."""
        super().run()
        if self.editable_mode:  # an editable install reads the checkout's own
            return
        for pattern in RECORDED:
            for file in RESULTS.glob(pattern):
                target = Path(self.build_lib, "proxyhpo", "recorded", file.relative_to(RESULTS))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


setup(cmdclass={"build_py": BuildWithRecorded})
