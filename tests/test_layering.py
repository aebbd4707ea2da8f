# SPDX-License-Identifier: Apache-2.0
"""The house stays in order: imports go one way, files are short and licensed, and the README shows the real tree."""

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from toy_data import ROOT

LONGEST_FUNCTION, LONGEST_FILE = 40, 320
LICENCE = "# SPDX-License-Identifier: Apache-2.0"
LICENSED = (".py", ".sh", ".yaml", ".yml")

LEAVES = ("src.crossentropy", "src.linear_warmup", "src.metrics", "src.pictures", "src.plots")  # and src/utils/*
WITHOUT_MINDSPORE = ("model_utils.config", "model_utils.local_adapter", "model_utils.moxing_adapter",
                     "src.linear_warmup", "src.warmup_step_lr", "src.warmup_cosine_annealing_lr", "src.metrics",
                     "src.pictures", "src.plots", "src.utils.sampler", "src.utils.logging", "postprocess")
NOT_YET: set[str] = set()  # rooms of the house that may still be empty
READS_CONFIG = re.compile(r"src\.build(_\w+)?")  # the files that unpack Config


# The files of the project


@cache
def ignore_patterns() -> tuple[str, ...]:
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    return (".git", *(line.strip() for line in lines if line.strip() and not line.startswith("#")))


def is_ignored(path: Path) -> bool:
    """Whether .gitignore leaves this out; it has only patterns of one name here, some of them for the root alone."""
    names = [path.name] if path.parent != ROOT else [path.name, f"/{path.name}"]
    return any(fnmatch(name, pattern.rstrip("/")) for name in names for pattern in ignore_patterns()
               if path.is_dir() or not pattern.endswith("/"))


def walk(folder: Path = ROOT) -> Iterator[Path]:
    """Every file of the project, without what git would ignore."""
    for path in sorted(folder.iterdir()):
        if is_ignored(path):
            continue
        if path.is_dir():
            yield from walk(path)
        else:
            yield path


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


FILES = [path for path in walk() if path.suffix in LICENSED]
PYTHON = [path for path in FILES if path.suffix == ".py"]
by_file = pytest.mark.parametrize("path", FILES, ids=map(relative, FILES))
by_python_file = pytest.mark.parametrize("path", PYTHON, ids=map(relative, PYTHON))


# Imports


class Import(NamedTuple):
    """One imported name, such as `src.build` or `mindspore.nn.Cell`."""

    name: str
    line: int
    when_loaded: bool  # False inside a function
    for_types: bool  # under `if TYPE_CHECKING`

    def is_in(self, package: str) -> bool:
        return self.name == package or self.name.startswith(package + ".")


def imports_of(source: str) -> list[Import]:
    found = []

    def visit(node: ast.AST, when_loaded: bool, for_types: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(item.name, node.lineno, when_loaded, for_types) for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative imports hide where a name comes from"
            found.extend(Import(f"{node.module}.{item.name}", node.lineno, when_loaded, for_types)
                         for item in node.names)
        inner = when_loaded and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing = for_types or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for child in ast.iter_child_nodes(node):
            visit(child, inner, typing)

    visit(ast.parse(source), True, False)
    return found


def module_name(path: Path) -> str:
    return relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_name(path): path for path in PYTHON if path.parent == ROOT
           or relative(path).startswith(("src/", "model_utils/"))}
ALL_LEAVES = [name for name in MODULES if name in LEAVES or name.startswith("src.utils")]
ENTRIES = [name for name, path in MODULES.items() if path.parent == ROOT]


@cache
def imports(module: str) -> tuple[Import, ...]:
    return tuple(imports_of(MODULES[module].read_text(encoding="utf-8")))


def project_module(name: str) -> str | None:
    """The file of the project that an imported name comes from."""
    parts = name.split(".")
    candidates = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((candidate for candidate in candidates if candidate in MODULES), None)


@cache
def needs_mindspore(module: str) -> bool:
    """Whether importing this module imports MindSpore."""
    for item in imports(module):
        if item.when_loaded and not item.for_types:
            inner = project_module(item.name)
            if item.is_in("mindspore") or (inner not in (None, module) and needs_mindspore(inner)):
                return True
    return False


def complaint(module: str, items: list[Import]) -> str:
    return "\n".join(f"{relative(MODULES[module])}:{item.line} imports {item.name}" for item in items)


def modules(*prefixes: str) -> list[str]:
    return [name for name in MODULES if name.startswith(prefixes)]


def test_the_import_reader_sees_every_kind():
    source = ("from typing import TYPE_CHECKING\nimport a.b, c\nif TYPE_CHECKING:\n    import d\n"
              "class K:\n    def f(self):\n        from src import g\n    import h\n")
    assert [(item.name, item.when_loaded, item.for_types) for item in imports_of(source)] == [
        ("typing.TYPE_CHECKING", True, False), ("a.b", True, False), ("c", True, False), ("d", True, True),
        ("src.g", False, False), ("h", True, False)]
    assert project_module("src.utils.util.InputError") == "src.utils.util"
    assert project_module("numpy.random") is None


def test_the_tree_that_is_walked_is_the_whole_one():
    assert {"train", "eval"} <= set(ENTRIES)
    assert not {*LEAVES, *WITHOUT_MINDSPORE} - set(MODULES) - NOT_YET
    assert needs_mindspore("src.vgg") and needs_mindspore("src.build") and not needs_mindspore("model_utils.entry")


@pytest.mark.parametrize("module", ENTRIES)
def test_an_entry_script_never_imports_another(module):
    wrong = [item for item in imports(module) if project_module(item.name) in ENTRIES]
    assert not wrong, complaint(module, wrong)


@pytest.mark.parametrize("module", ENTRIES)
def test_an_entry_script_imports_what_needs_mindspore_in_its_functions(module):
    wrong = [item for item in imports(module) if item.when_loaded and not item.for_types
             and (item.is_in("mindspore") or needs_mindspore(project_module(item.name) or "train"))]
    assert not wrong, complaint(module, wrong)


@pytest.mark.parametrize("module", modules("model_utils"))
def test_model_utils_imports_nothing_of_src_or_the_entry_scripts(module):
    wrong = [item for item in imports(module) if item.is_in("src") or project_module(item.name) in ENTRIES]
    assert not wrong, complaint(module, wrong)


@pytest.mark.parametrize("module", modules("src"))
def test_in_src_only_build_imports_model_utils(module):
    def may(item: Import) -> bool:
        return bool(READS_CONFIG.fullmatch(module)) or (module == "src.callbacks" and item.for_types)

    wrong = [item for item in imports(module) if project_module(item.name) in ENTRIES
             or (item.is_in("model_utils") and not may(item))]
    assert not wrong, complaint(module, wrong)


@pytest.mark.parametrize("module", ALL_LEAVES)
def test_a_leaf_imports_no_project_module_but_leaves(module):
    wrong = [item for item in imports(module) if project_module(item.name) not in (None, *ALL_LEAVES)]
    assert not wrong, complaint(module, wrong)


@pytest.mark.parametrize("module", [name for name in WITHOUT_MINDSPORE if name in MODULES])
def test_what_is_tested_anywhere_does_not_import_mindspore(module):
    wrong = [item for item in imports(module) if item.is_in("mindspore")]
    assert not wrong, complaint(module, wrong)
    assert not needs_mindspore(module)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "model_utils.device_adapter"])
def test_only_the_device_adapter_sets_a_device_or_joins_a_job(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    called = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert "set_device" not in called
    wrong = [item for item in imports(module) if item.name == "mindspore.communication.init"]
    assert not wrong, complaint(module, wrong)


# Files and functions


@by_file
def test_a_file_has_its_licence_and_is_not_too_long(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert LICENCE in lines[:2], f"{relative(path)}: the first line, or the one below #!, must be {LICENCE}"
    assert len(lines) <= LONGEST_FILE, f"{relative(path)}: {len(lines)} lines; split it"


@by_python_file
def test_no_function_is_long_without_a_reason(path):
    """The reason is a comment with the word "long", right above the function or in its first lines."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            start = min([node.lineno, *(item.lineno for item in node.decorator_list)])
            reason = any("#" in line and "long" in line.lower() for line in lines[start - 2:node.body[0].lineno])
            length = node.end_lineno - node.lineno + 1
            assert length <= LONGEST_FUNCTION or reason, f"{relative(path)}:{node.lineno} {node.name}: {length} lines"


# The README's file tree


def tree_block(text: str) -> list[str]:
    """The lines of the fenced block in which train.py and model_utils/ begin lines: one file or folder per line, or
    several with commas, then two blanks or a # before a description; children four columns further right."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    begins = [r"^[│├└─\s]*train\.py(,|\s\s|\s*$|\s+#)", r"^[│├└─\s]*model_utils/"]
    return next((block.splitlines() for block in blocks
                 if all(re.search(begin, block, flags=re.MULTILINE) for begin in begins)), [])


def listed_paths(lines: list[str]) -> set[str]:
    """What the tree names, folders with a slash at the end."""
    found, parents = set(), {}
    for line in filter(str.strip, lines):
        head, rest = re.fullmatch(r"([│├└─\s]*)(\S.*)", line).groups()
        names = re.split(r"\s{2,}|\s+#|\s+//", rest)[0].replace(",", " ").split()
        above = [parents[column] for column in sorted(parents) if column < len(head)]
        parents = {column: name for column, name in parents.items() if column < len(head)}
        found |= {(above[-1] if above else "") + name for name in names}
        if names[0].endswith("/"):
            parents[len(head)] = (above[-1] if above else "") + names[0]
    return found


def tree_differences(lines: list[str], files: list[str]) -> list[str]:
    """What the tree lacks or invents. A folder without children in the tree stands for all of its files;
    names that begin with a dot need not be listed."""
    listed = listed_paths(lines)
    folders = {f"{parent.as_posix()}/" for file in files for parent in Path(file).parents if parent != Path(".")}
    invented = sorted(listed - folders - set(files))
    opened = {name for name in folders if any(other != name and other.startswith(name) for other in listed)}

    def is_shown(file: str) -> bool:
        parts = [f"{parent.as_posix()}/" for parent in Path(file).parents if parent != Path(".")]
        return file in listed or any(part in listed and part not in opened for part in parts)

    lacking = [file for file in files if not is_shown(file) and Path(file).name != "__init__.py"
               and not any(part.startswith(".") for part in Path(file).parts)]
    return [f"{name} is not there" for name in invented] + [f"{name} is missing in the tree" for name in lacking]


def test_the_tree_reader_finds_what_is_wrong():
    files = ["train.py", "LICENSE", ".ci/run", "src/__init__.py", "src/a.py", "src/deep/b.py", "docs/c.md"]
    right = ["train.py, LICENSE      text  with, more", "src/", "    a.py       # text", "    deep/", "docs/   text"]
    drawn = ["├── train.py  # text", "├── LICENSE", "├── src/", "│   ├── a.py", "│   └── deep/", "└── docs/"]
    assert tree_differences(right, files) == tree_differences(drawn, files) == []
    assert tree_differences([*right, "gone.py"], files) == ["gone.py is not there"]
    assert tree_differences(right, [*files, "src/new.py", "new.py"]) \
        == ["src/new.py is missing in the tree", "new.py is missing in the tree"]


@pytest.mark.parametrize("name", ["README.md", "README_CN.md"])
def test_the_file_tree_in_the_readme_is_the_real_one(name):
    assert (ROOT / name).is_file(), f"{name} is missing; it holds the file tree, in a fenced block"
    lines = tree_block((ROOT / name).read_text(encoding="utf-8"))
    assert lines, f"{name} has no fenced block that lists train.py, model_utils/ and the other files"
    differences = tree_differences(lines, [relative(path) for path in walk()])
    assert not differences, "\n".join(differences)
