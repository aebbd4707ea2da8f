# SPDX-License-Identifier: Apache-2.0
"""env.sh and quickstart.sh with a Python that plays pip and the entry scripts: no network, no training."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, program

PREPARE = 'set -euo pipefail; source "$0"; prepare_environment "$@"; command -v python'
PYTHON = f"""#!/bin/sh
# answers `-c` as the real one; `-m venv` copies itself; everything else is written to a log
case "$1 $2" in
    -c*) exec "{sys.executable}" "$@" ;;
    "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit ;;
esac
echo "$@" >>"$LOG"
case "$1" in
    train.py) mkdir -p outputs/quickstart/20240101_00000$(ls outputs/quickstart | wc -l)
              for run in outputs/quickstart/*/; do :; done; touch "$run/best.ckpt" ;;
    scripts/make_shapes.py) mkdir -p "$2"; touch "$2/shapes.json" -d 2020-01-01 ;;
esac
exit "${{STATUS:-0}}"
"""


@pytest.fixture
def tree(tmp_path) -> Path:
    """What the scripts need, in a folder with a space in its name."""
    tree = tmp_path / "a folder"
    for name in ("scripts", "configs", "model_utils"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.txt", "requirements-dev.txt", "cifar10_config.yaml", "train.py"):
        shutil.copy(ROOT / name, tree)
    (tree / "src").mkdir()
    program(tmp_path / "python", PYTHON)
    return tree


def bash(tree: Path, *args: str, **variables: str) -> subprocess.CompletedProcess:
    """bash in another folder than the repository, with the Python of this file; `pip.log` is what that was asked."""
    kept = {key: value for key, value in os.environ.items() if key not in ("MINDSPORE_VERSION", "VENV")}
    settings = {"PYTHON": str(tree.parent / "python"), "LOG": str(tree.parent / "pip.log"), **variables}
    return subprocess.run(["bash", *args], cwd=tree.parent, env=kept | settings, capture_output=True, text=True,
                          timeout=60)


def prepare(tree: Path, *files: str, **variables: str) -> subprocess.CompletedProcess:
    return bash(tree, "-c", PREPARE, str(tree / "scripts/env.sh"), *files, **variables)


def pip_calls(tree: Path) -> int:
    log = tree.parent / "pip.log"
    return log.read_text().count("-m pip install") if log.exists() else 0


def test_an_environment_is_made_once_and_completed(tree):
    first = prepare(tree)
    assert first.returncode == 0 and first.stdout.splitlines()[-1] == str(tree / ".venv/bin/python"), first.stderr
    assert pip_calls(tree) == 1 and "mindspore==2.8.0" in (tree / ".venv/requirements.txt").read_text()
    assert prepare(tree).stdout.splitlines() == [str(tree / ".venv/bin/python")]
    with (tree / "requirements.txt").open("a") as file:
        file.write("another==1.0\n")
    assert prepare(tree, STATUS="1").returncode == 2 and pip_calls(tree) == 2  # pip fails: it is not complete
    assert prepare(tree).returncode == 0 and pip_calls(tree) == 3
    assert prepare(tree).returncode == 0 and pip_calls(tree) == 3
    assert "pytest" not in (tree / ".venv/requirements.txt").read_text()
    for files in (["requirements-dev.txt"], ["requirements-dev.txt"], []):  # more than a run needs is no reason
        assert prepare(tree, *files).returncode == 0 and pip_calls(tree) == 4
    assert "\npytest==" in (tree / ".venv/requirements.txt").read_text()


def test_another_mindspore_or_place_has_an_environment_of_its_own(tree):
    assert prepare(tree, MINDSPORE_VERSION="2.10.0").returncode == 0
    assert "mindspore==2.10.0\nnumpy==" in (tree / ".venv-2.10.0/requirements.txt").read_text()
    assert prepare(tree, MINDSPORE_VERSION="2.8.0", VENV="other place").returncode == 0
    assert (tree.parent / "other place/bin/python").exists() and not (tree / ".venv").exists()


def test_nothing_of_others_is_deleted(tree):
    theirs = tree.parent / "theirs"
    theirs.mkdir()
    (theirs / "notes.txt").touch()
    (tree / ".venv").symlink_to(theirs)
    done = prepare(tree)
    assert done.returncode == 2 and "is not a virtual environment" in done.stderr and (theirs / "notes.txt").exists()
    (theirs / "notes.txt").unlink()
    assert prepare(tree).returncode == 0 and (tree / ".venv").is_symlink()  # an empty folder on another disk
    program(theirs / "bin/python", "#!/bin/sh\nexit 1\n")
    done = prepare(tree)
    assert done.returncode == 2 and "does not run" in done.stderr and (theirs / "vgg-environment").exists()
    for name in ("requirements.txt", "vgg-environment"):
        (theirs / name).unlink()  # now it is somebody's own environment, whose packages pip would replace
    program(theirs / "bin/python", PYTHON)
    before = pip_calls(tree)
    assert "not made by this script" in prepare(tree).stderr and pip_calls(tree) == before


def test_a_full_disk_and_a_missing_python(tree):
    programs = tree.parent / "bin"
    programs.mkdir()
    program(programs / "df", "#!/bin/sh\necho Header\necho disk 9 8 1000000 99% /\n")
    done = prepare(tree, PATH=f"{programs}:{os.environ['PATH']}")
    assert done.returncode == 2 and "5 GB" in done.stderr and "VENV=" in done.stderr
    assert prepare(tree).returncode == 0  # which takes the space; what is added later is little
    assert prepare(tree, "requirements-dev.txt", PATH=f"{programs}:{os.environ['PATH']}").returncode == 0
    shutil.rmtree(tree / ".venv")
    done = prepare(tree, PYTHON="no-such-python")
    assert done.returncode == 2 and "no Python 3.10, 3.11 or 3.12 was found" in done.stderr
    (tree / "requirements.txt").unlink()
    assert "is not complete" in prepare(tree).stderr


def test_quickstart_trains_once(tree):
    def quickstart(*args: str, **variables: str) -> tuple[int, list[str]]:
        (tree.parent / "pip.log").unlink(missing_ok=True)
        done = bash(tree, str(tree / "scripts/quickstart.sh"), *args, **variables)
        calls = (tree.parent / "pip.log").read_text().splitlines() if (tree.parent / "pip.log").exists() else []
        return done.returncode, [call.split()[0] for call in calls if not call.startswith("-m")]

    rest = ["eval.py", "export.py", "scripts/make_shapes.py", "infer.py"]
    assert quickstart() == (0, ["scripts/make_shapes.py", "train.py", *rest])
    assert quickstart() == (0, ["scripts/make_shapes.py", *rest])
    assert quickstart("--retrain") == (0, ["scripts/make_shapes.py", "train.py", *rest])
    os.utime(tree / "train.py", (2**31, 2**31))  # changed after the run
    assert quickstart() == (0, ["scripts/make_shapes.py", "train.py", *rest])
    assert quickstart(STATUS="7") == (7, ["scripts/make_shapes.py"])
    assert quickstart("--retrian") == (2, [])
