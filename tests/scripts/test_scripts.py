# SPDX-License-Identifier: Apache-2.0
"""The launchers: strict, at home in any folder, plain about what is missing, safe when interrupted or doubled."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASH = shutil.which("bash") or "/bin/bash"
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh")) + [ROOT / ".ci" / "run"]
PREPARE = 'set -euo pipefail; source "$0"; prepare_environment; command -v python'


def settings() -> dict[str, str]:
    """The environment without the variables that the scripts read."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHON", "MINDSPORE_VERSION")}


def bash(*args: object, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run([BASH, *map(str, args)], cwd=cwd, env=settings() | variables, capture_output=True, text=True,
                          timeout=300)


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def tree(tmp_path):
    """A copy of what env.sh needs, under a path with spaces, that asks for no package."""
    tree = tmp_path / "a path with spaces"
    shutil.copytree(ROOT / "scripts", tree / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.txt", "requirements-dev.txt"):
        (tree / name).write_text("# nothing\n")
    return tree


def prepare(tree: Path, **variables: str) -> subprocess.CompletedProcess:
    """Make or reuse the environment of a tree, from a folder elsewhere; prints the Python it activates."""
    return bash("-c", PREPARE, tree / "scripts" / "env.sh", cwd=tree.parent, **{"PYTHON": sys.executable} | variables)


def refusal(tree: Path, **variables: str) -> str:
    """What it says where it cannot go on; pip may have said something before."""
    result = prepare(tree, **variables)
    before, error, message = result.stderr.partition("error: ")
    # "env.sh: line 7: ..." before the message would be a defect of the script
    assert result.returncode == 2 and error and "line " not in before, result
    return message


# --- how they are written


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_are_strict(script):
    assert bash("-n", script).returncode == 0
    text = script.read_text(encoding="utf-8")
    assert "# SPDX-License-Identifier: Apache-2.0" in text.splitlines()[:2]
    is_sourced = not text.startswith("#!")  # strictness is then its caller's
    assert is_sourced or "\nset -euo pipefail\n" in text


def test_ci_runs_the_tests_and_nothing_else():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == "bash scripts/run_tests.sh"


# --- what is missing


def test_no_python(tree, tmp_path):
    (tmp_path / "empty").mkdir()
    message = refusal(tree, PATH=str(tmp_path / "empty"), PYTHON="")
    assert "no Python 3.10, 3.11 or 3.12 was found (looked for: python3.11 python3.12" in message
    assert not (tree / ".venv").exists()


def test_python_that_does_not_fit(tree, tmp_path):
    old = write_program(tmp_path / "bin" / "python3", "#!/bin/sh\nexit 1\n")
    assert "no Python 3.10, 3.11 or 3.12 was found" in refusal(tree, PATH=str(old.parent), PYTHON="")
    assert f"looked for: {old}" in refusal(tree, PYTHON=str(old))


def test_python_without_venv(tree, tmp_path):
    bare = write_program(tmp_path / "bin" / "python3.12", """\
        #!/bin/sh
        case "$2" in *version_info*) exit 0 ;; esac
        exit 1
        """)
    message = refusal(tree, PATH=str(bare.parent), PYTHON="")
    assert "python3.12 has no venv and pip" in message and "apt install" in message


def test_packages_that_cannot_be_installed(tree):
    (tree / "requirements.txt").write_text("./absent-1.0-py3-none-any.whl\n")
    assert "could not be installed" in refusal(tree)
    (tree / "requirements.txt").write_text("# nothing\n")
    assert "Making" in prepare(tree).stdout  # the half-made one was no good


def test_incomplete_repository(tree):
    (tree / "requirements-dev.txt").unlink()
    assert "requirements-dev.txt is missing" in refusal(tree)


# --- the environment


def test_environment_is_made_once_and_kept(tree):
    first = prepare(tree)
    assert first.returncode == 0, first.stderr
    assert "Making" in first.stdout and first.stdout.splitlines()[-1] == str(tree / ".venv" / "bin" / "python")
    again = prepare(tree)
    assert again.stdout.splitlines() == [str(tree / ".venv" / "bin" / "python")]

    (tree / "requirements.txt").write_text("pip\n")  # it is there already: no network
    changed = prepare(tree)
    assert "Installing" in changed.stdout and "Making" not in changed.stdout
    assert len(prepare(tree).stdout.splitlines()) == 1


def test_half_made_environment_is_rebuilt(tree):
    broken = tree / ".venv"
    (broken / "bin").mkdir(parents=True)
    (broken / "made-by-env.sh").touch()
    (broken / "half").touch()
    assert "Making" in prepare(tree).stdout
    assert not (broken / "half").exists()


def test_moved_environment_is_not_kept(tree):
    make_stub_environment(tree)
    code = 'source "$0"; environment_is_whole "$REPOSITORY/.venv" && echo whole'
    assert bash("-c", code, tree / "scripts" / "env.sh").stdout == "whole\n"
    moved = tree.rename(tree.with_name("another path"))
    assert bash("-c", code, moved / "scripts" / "env.sh").stdout == ""
    assert "was not made by this script" in refusal(moved, PYTHON=sys.executable + "3.9")


def test_environment_of_somebody_else_is_not_removed(tree):
    theirs = tree / ".venv" / "notes.txt"
    theirs.parent.mkdir()
    theirs.touch()
    assert "was not made by this script" in refusal(tree)
    assert theirs.exists()


@pytest.mark.skipif(not shutil.which("flock"), reason="this system has no flock")
def test_two_at_once(tree):
    import fcntl

    make_stub_environment(tree)
    with open(tree / ".venv.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [BASH, "-c", PREPARE, str(tree / "scripts" / "env.sh")]
        second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                  env=settings())
        assert "Waiting for another script" in second.stderr.readline()
        assert second.poll() is None
    output, errors = second.communicate(timeout=60)
    assert second.returncode == 0 and output.strip().endswith("bin/python"), errors


@pytest.mark.parametrize("version, name", [("", ".venv"), ("2.8.0", ".venv"), ("2.10.0", ".venv-2.10.0")])
def test_each_mindspore_has_an_environment(version, name):
    code = 'set -euo pipefail; source "$0"; environment_name; wanted_requirements'
    result = bash("-c", code, ROOT / "scripts" / "env.sh", **{"MINDSPORE_VERSION": version} if version else {})
    lines = result.stdout.splitlines()
    assert lines[0] == name
    assert f"mindspore=={version or '2.8.0'}" in lines and "numpy==1.26.4" in lines
    assert not [line for line in lines[1:] if "==" not in line]


def test_mindspore_version_must_be_one(tree):
    assert "is not a version" in refusal(tree, MINDSPORE_VERSION="../2.8")


@pytest.fixture
def full_disk(tree, tmp_path):
    """Variables under which the tree's disk is full; there is room in `with_room` alone."""
    (tmp_path / "with_room").mkdir()
    programs = write_program(tmp_path / "bin" / "df", """\
        #!/bin/sh
        echo Filesystem 1024-blocks Used Available Capacity Mounted
        case "$*" in *with_room*) echo disk 9000000 2000000 7000000 23% / ;; *) echo disk 9 8 1 99% / ;; esac
        """).parent
    return {"PATH": f"{programs}:{os.environ['PATH']}", "TMPDIR": str(tmp_path / "with_room")}


def test_full_disk(tree, full_disk):
    assert f"are free neither in {tree} nor in {tree} or" in refusal(tree, **full_disk | {"TMPDIR": str(tree)})
    assert not (tree / ".venv").exists()

    first = prepare(tree, **full_disk)
    assert first.returncode == 0, first.stderr
    elsewhere = (tree / ".venv").readlink()
    assert str(elsewhere.parent) == full_disk["TMPDIR"] and f"the environment goes to {elsewhere}" in first.stdout
    show_tmp = 'source "$0"; prepare_environment; echo "$TMPDIR"'
    again = bash("-c", show_tmp, tree / "scripts" / "env.sh", PYTHON=sys.executable)
    assert again.stdout.splitlines() == [str(elsewhere / "tmp")]  # what the tests write goes there too

    shutil.rmtree(elsewhere)  # a restart of the machine
    assert "Making" in prepare(tree, **full_disk).stdout and not elsewhere.exists()
    elsewhere = (tree / ".venv").readlink()
    (elsewhere / "vgg-environment").unlink()  # not complete, and there is room now
    assert "Making" in prepare(tree).stdout and not (tree / ".venv").is_symlink() and not elsewhere.exists()


# --- quickstart, with the entry scripts played by others


def make_stub_environment(tree: Path) -> None:
    """A `.venv` that env.sh takes for complete; its Python is the one that runs the tests."""
    write_program(tree / ".venv" / "bin" / "python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    code = 'source "$0"; describe_environment "$REPOSITORY/.venv"'
    result = bash("-c", code, tree / "scripts" / "env.sh")
    assert result.returncode == 0, result.stderr
    (tree / ".venv" / "vgg-environment").write_text(result.stdout)


@pytest.fixture
def quickstart(tree):
    """The quickstart of a tree whose train.py writes an empty checkpoint."""
    make_stub_environment(tree)
    for name in ("src/readers/__init__.py", "src/readers/shapes.py", "src/utils/__init__.py", "src/utils/util.py",
                 "model_utils/__init__.py", "model_utils/errors.py", "configs/quickstart.yaml", "cifar10_config.yaml"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    (tree / "src" / "__init__.py").touch()
    write_program(tree / "train.py", """\
        import pathlib, sys
        flags = dict(flag.lstrip("-").split("=") for flag in sys.argv[1:])
        runs = pathlib.Path(flags["ckpt_path"])
        assert flags["mode"] == "train_and_evaluate" and pathlib.Path(flags["config_path"]).is_file()
        run = runs / f"2024010{len(list(runs.iterdir()))}_000000"
        run.mkdir()
        (run / "best.ckpt").touch()
        print("TRAINED", run.name)
        """)
    write_program(tree / "eval.py", "import sys\nprint('EVALUATED', sys.argv[-1])\n")
    write_program(tree / "export.py", "import sys\nprint('EXPORTED', *sys.argv[2:])\n")
    write_program(tree / "infer.py", "import sys\nprint('PREDICTED', *sys.argv[2:])\n")
    return lambda *args: bash(tree / "scripts" / "quickstart.sh", *args, cwd=tree.parent)


def test_quickstart_trains_when_it_must(quickstart, tree):
    first = quickstart()
    assert first.returncode == 0, first.stderr
    assert (tree / "data" / "shapes" / "cifar-10-verify-bin" / "test_batch.bin").is_file()
    assert "TRAINED 20240100" in first.stdout
    assert "EVALUATED --pre_trained=outputs/quickstart/20240100_000000/best.ckpt" in first.stdout
    assert str(tree / "outputs" / "quickstart" / "20240100_000000") in first.stdout
    run = "outputs/quickstart/20240100_000000"
    assert f"EXPORTED --ckpt_file={run}/best.ckpt --file_name={run}/vgg11 --file_format=MINDIR,ONNX" in first.stdout
    assert f"PREDICTED --model_path={run}/vgg11.mindir --input=data/shapes_to_predict/val" in first.stdout
    assert len(list((tree / "data" / "shapes_to_predict" / "val").glob("*/*.png"))) == 10

    second = quickstart()
    assert "TRAINED" not in second.stdout and "20240100_000000/best.ckpt" in second.stdout
    assert "TRAINED 20240101" in quickstart("--retrain").stdout
    with open(tree / "configs" / "quickstart.yaml", "a") as recipe:
        recipe.write("max_epoch: 9\n")
    assert "EVALUATED --pre_trained=outputs/quickstart/20240102_000000" in quickstart().stdout

    write_program(tree / "train.py", "import sys\nsys.exit(7)\n")
    failed = quickstart()
    assert failed.returncode == 7 and "EVALUATED" not in failed.stdout
    write_program(tree / "train.py", "print('nothing done')\n")
    assert "without a checkpoint" in quickstart().stderr


def test_quickstart_knows_one_flag(quickstart):
    result = quickstart("--retrian")
    assert result.returncode == 2 and "usage:" in result.stderr
