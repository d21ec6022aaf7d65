"""The rules between rooms: who may import whom, and what works without detectron2."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
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


@pytest.mark.parametrize(
    "old, new",
    [
        ("normdet.predict", "normdet.medical.predict"),
        ("normdet.predict.overlay", "normdet.medical.predict.overlay"),
        ("normdet.data.readers", "normdet.medical.readers"),
        ("normdet.data.readers.dicom", "normdet.medical.readers.dicom"),
        ("normdet.eval_norm", "normdet.convert.blend"),
        ("normdet.inference.tiled_model", "normdet.evaluation.tiled_model"),
        ("normdet.compare", "normdet.lab.compare"),
    ],
)
def test_a_moved_module_is_found_by_its_old_name(old, new):
    assert importlib.import_module(old) is importlib.import_module(new)


def test_what_was_in_config_is_still_there():
    import normdet.config
    import normdet.keys

    assert normdet.config.norm_option is normdet.keys.norm_option
    assert normdet.config.PARTS is normdet.keys.PARTS
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = normdet.config.nothing
