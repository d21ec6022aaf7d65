"""The command `normdet`. A subcommand imports what it needs when it runs, so `--help` is quick."""

import argparse
import importlib
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from normdet.arguments import train_arguments
from normdet.errors import NormdetError
from normdet.files.faults import full_disk, tell_of_threads
from normdet.noise import NOISE, NOISY_MODULES
from normdet.version import __version__


def _train(args: argparse.Namespace) -> None:
    from normdet.engine import train

    train(args)


def _norms(args: argparse.Namespace) -> None:
    from tabulate import tabulate

    from normdet.options import table

    width = shutil.get_terminal_size((160, 24)).columns
    widths = [max(8, int(width * share)) for share in (0.07, 0.07, 0.22, 0.22, 0.16, 0.19)]
    print(tabulate(table(), headers="keys", tablefmt="simple_grid", maxcolwidths=widths))


def _configs_ls(args: argparse.Namespace) -> None:
    from normdet.config import config_names

    print("\n".join(config_names()))


def _configs_cp(args: argparse.Namespace) -> None:
    """Copy a config with its base files merged in, so that the copy stands alone."""
    from normdet.config import merged_config

    text = merged_config(args.name)
    name = Path(args.name).name
    target = Path(args.target or name)
    target = target / name if target.is_dir() else target
    if target.exists():
        raise NormdetError(f"{target} already exists")
    target.write_text(text)
    print(target)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="normdet", description="Any normalization as a flag of detectron2's detectors."
    )
    parser.add_argument("--version", action="version", version=f"normdet {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name, text, run, within=commands):
        added = within.add_parser(name, help=text, description=_sentence(text))
        added.set_defaults(run=run)
        return added

    delegated = {name: text for name, (text, _) in DELEGATED.items()}
    for name, text in (TRAINING | delegated).items():
        commands.add_parser(name, help=text, add_help=False)
    command("norms", "list the norms, activations and weight methods of an option", _norms)
    configs = commands.add_parser("configs", help="list and copy the configs that come along")
    actions = configs.add_subparsers(metavar="ACTION", required=True)
    command("ls", "list the configs", _configs_ls, actions)
    copy = command("cp", "copy a config, its base files merged in", _configs_cp, actions)
    copy.add_argument("name", help="as `normdet configs ls` prints it")
    copy.add_argument("target", nargs="?", help="file or folder; by default the current folder")
    return parser


def _keep_workers_quiet() -> None:
    """Silence known notices of other packages in the processes that this one starts, too."""
    rules = [f"ignore:{prefix}:{category.__name__}" for prefix, category in NOISE]
    _prepend("PYTHONWARNINGS", rules)
    _prepend("TORCH_LOGS", [f"-{module}" for module in NOISY_MODULES])


def _prepend(variable: str, rules: list[str]) -> None:
    """Put rules before those of the user: the later ones win."""
    users = os.environ.get(variable, "")
    if rules[0] not in users:
        os.environ[variable] = ",".join(rules + ([users] if users else []))


# argparse's own subcommands take no KEY VALUE pairs on both sides of a flag, so these are parsed
# by functions of ours.
TRAINING = {
    "train": "train a detector and evaluate it",
    "eval": "evaluate the weights of a detector",
}
# Subcommands that parse their own arguments: what they do, and the module whose `main(argv)` runs.
DELEGATED = {
    "pretrain": (
        "train a backbone on a folder of labelled images, for detectors to start from",
        "normdet.pretrain",
    ),
    "demo": ("train FRN+TLU and GN on real microscopy, and report", "normdet.lab.demo"),
    "prepare": ("make images of labs and hospitals ready to train on", "normdet.medical.prepare"),
    "predict": (
        "find objects in images: COCO JSON, overlays, label images, counts",
        "normdet.medical.predict",
    ),
    "doctor": ("say whether stored batch statistics fit your images", "normdet.lab.doctor"),
    "convert": ("give a trained model another norm and keep its function", "normdet.convert"),
    "export": (
        "write a model as ONNX, TorchScript, pt2 or plain detectron2, and check the file",
        "normdet.export",
    ),
    "inspect": (
        "say what a weights file is, and which config keys it needs", "normdet.weights.command",
    ),
    "compare": (
        "train norms against each other on your data, and report with intervals",
        "normdet.lab.compare",
    ),
    "bench": ("measure the layers and their fast forms", "normdet.lab.bench"),
    "tool": (
        "run a script made for detectron2, such as its tools/, on configs with our keys",
        "normdet.tool",
    ),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` and return its exit code.

    0 is success, 2 bad input, 3 a loss that is not finite, 128 plus the signal's number a run that
    was stopped. Other exceptions are bugs: they pass, with their traceback.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    _keep_workers_quiet()
    tell_of_threads()
    try:
        if argv and argv[0] in TRAINING:
            _train(train_arguments(argv[1:], argv[0], _sentence(TRAINING[argv[0]])))
            return 0
        if argv and argv[0] in DELEGATED:
            _, module = DELEGATED[argv[0]]
            return importlib.import_module(module).main(argv[1:]) or 0
        args = _parser().parse_args(argv)
        args.run(args)
    except NormdetError as error:
        # Under torchrun every worker has its own copy of this line.
        worker = f" [rank {os.environ['RANK']}]" if "RANK" in os.environ else ""
        print(f"normdet: error:{worker} {error}", file=sys.stderr)
        return error.exit_code
    except (OSError, RuntimeError) as error:
        full = full_disk(error)
        if full is None:
            raise
        print(f"normdet: error: {full}", file=sys.stderr)
        return full.exit_code
    except KeyboardInterrupt as interrupt:
        print(f"normdet: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 128 + getattr(interrupt, "signal", signal.SIGINT)
    return 0
