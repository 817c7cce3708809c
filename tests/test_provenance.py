import re
import subprocess

from proxyhpo import rows as provenance
from proxyhpo.rows import COLUMNS


def test_provenance_is_part_of_a_row():
    told = provenance.provenance()
    assert set(told) <= set(COLUMNS)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", told["recorded"])
    assert re.match(r"\d+\.\d+", told["version"])
    assert re.match(r"\d+\.\d+", told["optuna"])
    assert re.fullmatch(r"([0-9a-f]{40}(-dirty)?)?", told["commit"])


def test_commit_tells_whether_the_package_was_changed(tmp_path):
    look = provenance.commit.__wrapped__
    package = tmp_path / "package"
    package.mkdir()
    (package / "code.py").write_text("x = 1\n")
    assert look(package) == ""

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    git("init")
    assert look(package) == ""
    git("add", ".")
    git("commit", "-m", "first")
    assert re.fullmatch("[0-9a-f]{40}", look(package))
    (tmp_path / "results.csv").write_text("rows that were added\n")
    assert re.fullmatch("[0-9a-f]{40}", look(package))
    installed = tmp_path / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "code.py").write_text("x = 1\n")
    assert look(installed) == ""
    (package / "code.py").write_text("x = 2\n")
    assert re.fullmatch("[0-9a-f]{40}-dirty", look(package))
