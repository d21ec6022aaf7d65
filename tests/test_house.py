"""The rules of the house: who may import whom, what works without detectron2, what tests what."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "normdet"
WINGS = ("lab", "medical")
# What knows nothing of detectron2, at import or ever.
NOT_AT_IMPORT = ("keys", "options", "layers", "ops", "files.atomic", "files.lock", "files.faults")
NEVER = ("options", "layers", "ops", "surgery")


def imports(file: Path, *, at_run_time: bool = True) -> Iterator[str]:
    """The absolute names of all that a file imports, in functions too unless told otherwise."""
    inside = file.relative_to(PACKAGE.parent).with_suffix("").parts
    yield from _imports(_parsed(file).body, inside, at_run_time)


@cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def _imports(nodes, inside: tuple[str, ...], at_run_time: bool) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            yield from (_module(module, alias.name) for alias in node.names)
        elif not at_run_time and (_is_function(node) or _is_for_types(node)):
            continue
        elif not _is_for_types(node):
            yield from _imports(ast.iter_child_nodes(node), inside, at_run_time)


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _module(module: str, name: str) -> str:
    """`module.name` where that is a module of ours, else `module`."""
    path = PACKAGE.parent.joinpath(*module.split("."), name)
    return f"{module}.{name}" if path.is_dir() or path.with_suffix(".py").is_file() else module


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files(*rooms: str) -> list[Path]:
    """The files of rooms, or of the whole package."""
    if not rooms:
        return sorted(PACKAGE.rglob("*.py"))
    paths = [PACKAGE.joinpath(*room.split(".")) for room in rooms]
    alone = [path.with_suffix(".py") for path in paths if not path.is_dir()]
    return sorted({*alone, *(file for path in paths for file in path.rglob("*.py"))})


def room_of(module: str) -> str:
    """`data` of `normdet.data.coco`; a file that lies in no room is one of its own."""
    return module.split(".")[1] if "." in module else ""


def strays(found: list[Path], forbidden: tuple[str, ...], **how) -> list[str]:
    return [
        f"{module_of(file)} imports {name}"
        for file in found
        for name in imports(file, **how)
        if any(name == one or name.startswith(f"{one}.") for one in forbidden)
    ]


def test_the_plugin_knows_neither_wing():
    plugin = [f for f in files() if room_of(module_of(f)) not in (*WINGS, "cli", "__main__")]
    assert len(plugin) > 100
    assert not strays(plugin, ("normdet.lab", "normdet.medical", "normdet.cli"))


def test_the_wings_do_not_know_each_other():
    assert not strays(files("lab"), ("normdet.medical", "normdet.cli"))
    assert not strays(files("medical"), ("normdet.lab", "normdet.cli"))


def test_front_door_layers_and_ops_know_no_detectron2():
    forbidden = ("detectron2", "normdet.modeling", "normdet.config")
    assert not strays(files(*NOT_AT_IMPORT), forbidden, at_run_time=False)
    assert not strays(files(*NEVER), forbidden)


def test_rooms_import_in_one_direction():
    """No room imports, even in a function, one that imports it: data flows one way."""
    graph: dict[str, set[str]] = {}
    for file in files():
        room = room_of(module_of(file))
        named = {room_of(name) for name in imports(file) if name.split(".")[0] == "normdet"}
        graph.setdefault(room, set()).update(named - {room, ""})
    assert _circle(graph) is None


def test_modules_import_in_one_direction():
    graph = {
        module_of(file): {name for name in imports(file) if name.split(".")[0] == "normdet"}
        for file in files()
    }
    # A package's own __init__ gathers what its modules have: they do not import it back.
    assert _circle({module: names & graph.keys() for module, names in graph.items()}) is None


def _circle(graph: dict[str, set[str]]) -> list[str] | None:
    """Names that import one another in turn, or None."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return None
        for other in sorted(graph.get(name, ())):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return None

    return next((found for name in sorted(graph) if (found := visit(name, []))), None)


BLOCKED = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
{code}
"""


def run_without(blocked: tuple[str, ...], code: str) -> str:
    program = BLOCKED.format(blocked=blocked, code=code)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_layers_work_where_detectron2_is_not_installed():
    code = """
import torch
import normdet
from normdet.layers import FilterResponseNorm2d
y = FilterResponseNorm2d(4)(torch.randn(2, 4, 5, 5))
norm = normdet.parse("GN+WS").build_norm(32, activate=True)
import normdet.keys
print(tuple(y.shape), tuple(norm(torch.randn(1, 32, 3, 3)).shape), normdet.keys.PARTS["fpn"].key)
"""
    assert run_without(("detectron2",), code).split("MODEL")[1] == ".FPN.NORM\n"


# What Windows lacks; to other packages it is still there, as they have ways of their own.
ON_WINDOWS = """
import builtins
real = builtins.__import__
def windows(name, globals=None, *rest, **named):
    importer = (globals or {}).get("__name__", "")
    if name in ("fcntl", "resource", "pwd", "grp", "termios") and importer.startswith("normdet"):
        raise ModuleNotFoundError(f"{importer} asks for {name}")
    return real(name, globals, *rest, **named)
builtins.__import__ = windows
"""


@pytest.mark.slow
def test_what_windows_has_is_enough_to_import_everything():
    """Clinicians work there: neither `fcntl` nor `resource` is needed."""
    names = [module_of(file) for file in files() if "triton" not in file.stem]
    code = f"""{ON_WINDOWS}
import importlib
for name in {[name for name in names if name != "normdet.__main__"]!r}:
    importlib.import_module(name)
from normdet import cli
cli.main(["configs", "ls"])
try:
    cli.main(["predict", "--help"])
except SystemExit as done:
    print("exit", done.code)
"""
    told = run_without((), code)
    assert "quickstart/base.yaml" in told and told.endswith("exit 0\n")


TESTS = PACKAGE.parent / "tests"
# Test files of no single module: what they are about.
ACROSS = {
    "test_every_config": "each config file",
    "test_fuzz": "each reader of files",
    "test_house": "the whole tree",
    "data/test_bombs": "each reader of images",
    "engine/test_faults": "whole runs that are killed, stopped and restarted",
    "export/test_detectron2": "what detectron2's own export tests ask",
    "export/test_scripting": "each norm under torch.jit.script",
    "lab/doctor/test_examples": "results/scripts/doctor_examples.py",
    "layers/test_every_option": "each option",
    "layers/test_formulas": "each norm against its formula",
    "medical/predict/test_from_training": "training, then predicting",
    "medical/prepare/test_faults": "bad input of each kind",
    "medical/prepare/test_privacy": "each kind of input that names a patient",
    "medical/prepare/test_train": "preparing, then training",
    "medical/readers/test_one_reader": "each route by which an image is read",
    "modeling/test_parts": "each norm in each part of a detector",
    "modeling/test_same_as_stock": "our detectors beside detectron2's",
    "modeling/test_ways": "each norm in each way to run",
    "ops/test_backends": "each operator on each backend",
    "ops/test_triton": "the four modules of Triton kernels",
    "weights/test_weight_methods": "plain checkpoints under each weight method",
}
# Modules without a test file of their name, and the one that tests them through their users.
THROUGH = {
    "convert/*": "convert/test_run",
    "data/annotation": "data/test_coco_in_the_wild",
    "data/ignored": "modeling/test_ignored",
    "data/records": "data/test_coco",
    "data/rle": "evaluation/test_tiles",
    "data/slices": "medical/readers/test_dicom",
    "data/tiff": "medical/readers/test_one_reader",
    "engine/log": "engine/test_run",
    "engine/precise": "engine/test_trainer",
    "engine/progress": "engine/test_run",
    "engine/signals": "engine/test_launch",
    "engine/watch": "engine/test_faults",
    "evaluation/detector": "medical/predict/test_command",
    "evaluation/truth": "evaluation/test_measure",
    "export/*": "export/test_command",
    "files/atomic": "weights/test_files",
    "files/faults": "test_cli",
    "files/lock": "lab/compare/test_command",
    "files/stamp": "data/test_check",
    "files/versions": "lab/compare/test_cell",
    "lab/bench/*": "lab/bench/test_command",
    "lab/compare/*": "lab/compare/test_command",
    "lab/doctor/*": "lab/doctor/test_command",
    "layers/*": "layers/test_formulas",
    "medical/predict/output": "medical/predict/test_command",
    "medical/prepare/formats/*": "medical/prepare/test_formats",
    "medical/prepare/*": "medical/prepare/test_kinds",
    "medical/readers/find": "medical/prepare/test_faults",
    "medical/readers/neighbours": "medical/readers/test_nifti",
    "medical/typeface": "medical/predict/test_overlay",
    "medical/windowed": "medical/readers/test_one_reader",
    "modeling/*": "modeling/test_parts",
    "ops/triton_*": "ops/test_triton",
    "ops/*": "ops/test_backends",
    "option_text": "test_options",
    "surgery/*": "surgery/test_normalize",
    "weights/facts": "weights/test_checks",
    "weights/importers/*": "weights/test_importers",
    "weights/seal": "weights/test_integrity",
}


def tested_files() -> list[Path]:
    """Those of the package; `tests/docs` and `tests/tools` mirror other folders."""
    return [f for f in sorted(TESTS.rglob("test_*.py")) if f.parent.name not in ("docs", "tools")]


def test_a_test_file_is_named_after_a_module():
    """After a module or a package, which may be followed by what of it is tested."""
    strange = []
    for file in tested_files():
        room = PACKAGE / file.parent.relative_to(TESTS)
        modules = {path.stem for path in room.iterdir() if path.suffix in ("", ".py")}
        about = file.stem.removeprefix("test_")
        named = any(f"{about}_".startswith(f"{module}_") for module in modules)
        if named == (str(file.relative_to(TESTS).with_suffix("")) in ACROSS):
            strange.append(file.name)
    assert not strange


def test_each_module_has_a_test_file():
    used, without = set(), []
    for file in files():
        module = file.relative_to(PACKAGE).with_suffix("")
        tests = TESTS / module.parent
        if not _has_public_functions(file) or list(tests.glob(f"test_{module.name}*.py")):
            continue
        pattern = next((one for one in THROUGH if fnmatch(str(module), one)), None)
        used.add(pattern)
        if pattern is None or not (TESTS / f"{THROUGH[pattern]}.py").is_file():
            without.append(str(module))
    assert not without and used == set(THROUGH)


def _has_public_functions(file: Path) -> bool:
    return file.stem != "__init__" and any(
        (isinstance(node, ast.FunctionDef) and not node.name.startswith("_"))
        or (isinstance(node, ast.ClassDef) and any(map(_is_function, node.body)))
        for node in _parsed(file).body
    )  # fmt: skip


def test_tests_use_public_names():
    ours = {name for file in files() for name in _defined(_parsed(file)) if _is_private(name)}
    used = []
    for file in TESTS.rglob("*.py"):
        for node in ast.walk(_parsed(file)):
            names = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("normdet"):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Attribute) and not _is_own(node):
                names = [node.attr]
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "setattr":
                names = [arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)]
            used += [f"{file.name}:{node.lineno} {name}" for name in names if name in ours]
    assert not used


def _defined(tree: ast.Module) -> Iterator[str]:
    """Names of the functions, classes, variables and attributes that a file makes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_own(node):
            yield node.attr


def _is_own(node: ast.Attribute) -> bool:
    """Whether this is `self.name`."""
    return isinstance(node.value, ast.Name) and node.value.id == "self"


def _is_private(name: str) -> bool:
    # `_metadata` is an attribute of torch's state dicts too.
    return name.startswith("_") and not name.startswith("__") and name not in ("_", "_metadata")
