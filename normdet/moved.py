"""Old names of modules that have moved; they can still be imported."""

import importlib
import importlib.abc
import importlib.machinery
import sys

# A package stands for its modules too; the longest name counts.
MOVED = {
    "bench": "lab.bench",
    "compare": "lab.compare",
    "compare.memory": "files.memory",
    "data.readers": "medical.readers",
    "data.readers.base": "data.slices",
    "data.readers.image": "data.image_file",
    "data.windowed": "medical.windowed",
    "demo": "lab.demo",
    "doctor": "lab.doctor",
    "eval_norm": "convert.blend",
    "inference": "evaluation",
    "inspect_weights": "weights.command",
    "lab.compare.record": "lab.compare.folder",
    "lab.compare.table": "lab.compare.runs",
    "lock": "files.lock",
    "modeling.per_level": "layers.per_level",
    "predict": "medical.predict",
    "prepare": "medical.prepare",
    "prepare.faults": "files.faults",
    "report": "lab.report",
    "report.colours": "files.style",
    "report.history": "engine.history",
    "report.page": "files.page",
    "report.training": "engine.norm_page",
}


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the module of the new name under the old name."""

    def find_spec(self, name, path=None, target=None):
        package, _, old = name.partition(".")
        if package != __package__:
            return None
        words = old.split(".")
        for count in range(len(words), 0, -1):
            if new := MOVED.get(".".join(words[:count])):
                origin = ".".join([package, new, *words[count:]])
                return importlib.machinery.ModuleSpec(name, self, origin=origin)
        return None

    def exec_module(self, module):
        # The import returns what `sys.modules` holds once the loader is done.
        sys.modules[module.__name__] = importlib.import_module(module.__spec__.origin)


def keep_old_names() -> None:
    """Let `import normdet.predict` and other old names work. Idempotent."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        # Before Python's own finders, which would load a file of an old package a second time.
        sys.meta_path.insert(0, _Moved())
