"""Register our parts with detectron2's registries, whichever of the two is imported first."""

import importlib.abc
import importlib.util
import sys

_REGISTRIES = "detectron2.modeling"


class _AfterRegistries(importlib.abc.MetaPathFinder):
    """Imports :mod:`normdet.modeling` right after the module that holds detectron2's registries."""

    def find_spec(self, name, path=None, target=None):
        if name != _REGISTRIES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_register(module):
            load(module)
            importlib.import_module("normdet.modeling")

        spec.loader.exec_module = load_and_register
        return spec


def register_with_detectron2() -> None:
    """Register now if detectron2's registries are there, else when they come."""
    if _REGISTRIES in sys.modules:
        importlib.import_module("normdet.modeling")
    elif not any(isinstance(finder, _AfterRegistries) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterRegistries())
