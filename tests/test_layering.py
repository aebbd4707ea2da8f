# SPDX-License-Identifier: Apache-2.0
"""The rules of the architecture: imports go one way, and every file has its licence line."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = ("train", "eval", "export", "infer", "preprocess", "postprocess")
# Packages of `src` that a package may import, besides itself, `src.utils` and `model_utils`.
ALLOWED = {"utils": set(), "data": set(), "weights": set(), "evaluation": {"data", "weights"},
           "training": {"data", "weights", "evaluation"}, "deploy": {"data", "weights", "evaluation"}}
CODE = [path for folder in ("src", "model_utils", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
CODE += [ROOT / f"{name}.py" for name in ENTRIES]


def imported_names(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{item.name}" for item in node.names)


def test_imports_go_one_way():
    wrong = []
    for path in CODE:
        package = path.relative_to(ROOT).parts[0]
        inner = path.parent.name if package == "src" and path.parent != ROOT / "src" else None
        for name in imported_names(path):
            parts = name.split(".")
            upward = package in ("src", "model_utils") and parts[0] in ENTRIES
            upward |= package == "model_utils" and parts[0] == "src"
            if inner and parts[0] == "src" and parts[1] in ALLOWED:
                upward |= parts[1] not in ALLOWED[inner] | {inner, "utils"}
            if upward:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_what_a_device_runs_needs_requirements_infer_alone():
    everything, installed = ({line.split("==")[0] for line in (ROOT / name).read_text().split("\n") if "==" in line}
                             for name in ("requirements.txt", "requirements-infer.txt"))
    assert installed < everything and "mindspore" not in installed
    blocked = {name.replace("-", "_"): None for name in everything - installed}
    modules = [*ENTRIES, "model_utils.moxing_adapter", "src.deploy.infer", "src.deploy.prepared"]
    code = f"import sys; sys.modules |= {blocked}\nimport {', '.join(modules)}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr


def test_every_source_file_has_its_licence_line():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True,
                            check=True).stdout.split("\n")
    files = [ROOT / name for name in listed if name.endswith((".py", ".sh", ".yaml")) and (ROOT / name).is_file()]
    files = [path for path in files if "files" not in path.parts]
    assert files
    missing = [str(path) for path in files
               if "# SPDX-License-Identifier: Apache-2.0" not in path.read_text(encoding="utf-8").split("\n")[:2]]
    assert not missing, missing
