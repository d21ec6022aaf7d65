"""`normdet tool SCRIPT`: a script made for detectron2, such as one of its `tools/`, on our configs.

The script runs unchanged. Its `get_cfg()` has our keys, and it may name our config files and
datasets. LazyConfig files work without this.
"""

import argparse
import functools
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import NormdetError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script that the arguments name, with the arguments that follow it.

    Returns:
        Its exit code.

    Raises:
        NormdetError: there is no such script, or the script raises one in our code.
    """
    parser = argparse.ArgumentParser(
        prog="normdet tool",
        description="Run a script made for detectron2, such as its tools/analyze_model.py, on "
        "configs with our keys.",
    )
    parser.add_argument("script", type=Path, help="a Python file")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="what the script takes")
    args = parser.parse_args(argv)
    if not args.script.is_file():
        raise NormdetError(f"{args.script} is no file: name a script, as detectron2/tools/NAME.py")
    _teach_configs()
    before = sys.argv, sys.path[0]
    sys.argv, sys.path[0] = [str(args.script), *args.args], str(args.script.parent)
    try:
        runpy.run_path(str(args.script), run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv, sys.path[0] = before
    return 0


def _teach_configs() -> None:
    """Let detectron2's `get_cfg` give configs that have our keys and read our files."""
    import detectron2.config
    import detectron2.config.config as home

    from .config import config_file
    from .data.register import is_described, register_datasets
    from .keys import add_normdet_config, use_normdet_parts

    class Config(home.CfgNode):
        """A config that finds our files by their names."""

        def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
            known = Path(cfg_filename).is_file()
            super().merge_from_file(
                cfg_filename if known else config_file(cfg_filename), allow_unsafe
            )
            use_normdet_parts(self)

        def freeze(self) -> None:
            """Register the datasets that the finished config names in our way."""
            described = self.clone()
            described.defrost()
            for key in ("TRAIN", "TEST"):
                ours = [text for text in self.DATASETS[key] if is_described(text)]
                described.DATASETS[key] = tuple(ours)
            register_datasets(described)
            super().freeze()

    stock = home.get_cfg

    @functools.wraps(stock)
    def get_cfg():
        cfg = Config(stock())
        add_normdet_config(cfg)
        return cfg

    home.get_cfg = detectron2.config.get_cfg = get_cfg
