"""Make a data set to train on: COCO JSON, images, their statistics, a config and a picture."""

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from normdet.arguments import add_common
from normdet.data.choice import CHANNEL_FORMS, PLANE_FORMS, parse_choice
from normdet.data.input_record import PREPARED
from normdet.data.records import MAX_BOX_FAULTS, check_class_name
from normdet.data.slices import MAX_PIXELS, Slice
from normdet.data.window import FORMS, apply_window, parse_window
from normdet.errors import NormdetError
from normdet.files.anonymous import Numbers, hiding, key_beside
from normdet.files.faults import Faults, unreadable
from normdet.files.stamp import stamp_of
from normdet.medical.prepare import split as splitting
from normdet.medical.prepare.contact_sheet import draw
from normdet.medical.prepare.fingerprint import fingerprint_of
from normdet.medical.prepare.fragment import scale_of, write_configs
from normdet.medical.prepare.journal import Journal, journal_beside, key_of, was_finished
from normdet.medical.prepare.kinds import KINDS, OPTIONS, Request, detect, stacks
from normdet.medical.prepare.masks import Labels
from normdet.medical.prepare.stack import Stack
from normdet.medical.prepare.write import (
    IMAGES,
    Collected,
    Written,
    coco_content,
    file_name_of,
    write_image,
    write_json,
)
from normdet.medical.readers import nifti
from normdet.medical.readers.find import numbered
from normdet.medical.windowed import read_windowed
from normdet.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the source that the arguments name.

    Raises:
        NormdetError: the source cannot be read, or the output folder cannot be written.
    """
    args = parse_arguments(argv)
    if args.anonymize is None:
        args.kind = args.kind or detect(args.source)
        args.anonymize = args.kind == "dicom"  # its files are usually named after patients
    if not args.anonymize:
        return _main(args, None)
    roots = filter(None, (args.source, args.images, args.labels))
    numbers = Numbers(roots, key_beside(args.out), own=[args.out, args.out.absolute()])
    with hiding(numbers):
        return _main(args, numbers)


def _main(args: argparse.Namespace, numbers: Numbers | None) -> int:
    out = args.out.absolute()
    command = _digest(args)
    if was_finished(out, command):
        print(f"{out} is done: a run of this command was killed after its result was in place")
        return 0
    _check_free(out, args.overwrite)
    source = Path(os.path.realpath(args.source))
    if source in (home := Path(os.path.realpath(out)), *home.parents):
        raise NormdetError(f"{out} lies in the source {args.source}: name a place outside of it")
    for given in filter(None, (args.source, args.images, args.labels)):
        # --overwrite would delete it.
        place = Path(os.path.realpath(given))
        if home in (place, *place.parents):
            raise NormdetError(f"{given} lies in {out}: name a place beside it")
    request = Request(
        args.source,
        args.kind or detect(args.source),
        args.images,
        args.labels,
        Labels(
            args.instances,
            _classes(args.classes),
            ignore=None if args.ignore in (None, "auto") else _values(args.ignore, "--ignore"),
            background=_values(args.background, "--background"),
        ),
        args.patient,
        args.axis,
        args.max_pixels,
        parse_choice(args.channels, args.planes),
        args.max_box_faults,
    )
    try:
        with journal_beside(out) as journal:
            summary = prepare(request, args, journal, numbers)
            _check_free(out, args.overwrite)
            journal.finish(command)
            _replace(journal.folder, out, journal.folder.with_name("old"))
            # If it is killed before this is told, the same command says that it is done.
            _tell(summary, args, numbers)
    except BrokenPipeError:  # nobody reads what is told
        raise
    except OSError as error:
        raise NormdetError(f"{out} cannot be written: {error.strerror or error}") from error
    return 0


def _tell(summary: str, args: argparse.Namespace, numbers: Numbers | None) -> None:
    out = args.out.absolute()
    print(summary)
    if numbers:
        print(f"names    {key_beside(args.out)} has those of the numbers; keep it to yourself")
    print(f"look at  {out / 'contact_sheet.png'}")
    train = shlex.join(["normdet", "train", "--config-file", str(out / "train.yaml")])
    print(f"then     {train}", flush=True)


def _classes(text: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    for name in names:
        check_class_name(name, "--classes")
    return names


def _values(text: str, option: str) -> tuple[int, ...]:
    values = [value.strip() for value in text.split(",")] if text != "none" else []
    if not all(value.isdecimal() and int(value) for value in values):
        raise NormdetError(f"{option} {text!r}: label values above 0, such as 255, or none")
    return tuple(map(int, values))


def _without_effect(args: argparse.Namespace, kind: str) -> list[str]:
    """A note on options that were given and are for other kinds of sources."""
    plain = vars(parse_arguments([str(args.source), "--out", str(args.out)]))
    given = vars(args)
    idle = [
        "--" + name.replace("_", "-")
        for name, kinds in OPTIONS.items()
        if kind not in kinds and given[name] != plain[name]
    ]
    have = "has" if len(idle) == 1 else "have"
    return [f"{', '.join(idle)} {have} no effect on a source of the kind {kind}"] if idle else []


def _check_free(out: Path, overwrite: bool) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())) and not overwrite:
        raise NormdetError(f"{out} exists: name another folder, or replace it with --overwrite")


def _digest(args: argparse.Namespace) -> str:
    """A hash of the arguments and of the files that they name."""
    given = {key: str(value) for key, value in vars(args).items() if key != "overwrite"}
    roots = [path for path in (args.source, args.images, args.labels) if path]
    files = [file for root in roots for file in (root, *root.rglob("*")) if file.exists()]
    text = json.dumps([__version__, given, stamp_of(files)], sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def prepare(
    request: Request, args: argparse.Namespace, journal: Journal, numbers: Numbers | None = None
) -> str:
    """Write a whole data set into the journal's folder.

    With `numbers`, images are named by them instead of by their files.

    Returns:
        A summary of a few lines.
    """
    folder = journal.folder
    console = Console(stderr=True)
    faults = Faults(
        args.on_error,
        lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
    )
    notes = _without_effect(args, request.kind)
    queue = list(stacks(request, faults, notes))
    if numbers:
        queue = [replace(one, source=numbered(one.source, numbers)) for one in queue]
    declared = list(dict.fromkeys(name for stack in queue for name in stack.classes))
    readings = list(dict.fromkeys(stack.reading for stack in queue if stack.reading))
    stated = {stack.split for stack in queue}
    collected = _collect(queue, request, args, journal, faults, console)
    written = collected.written
    _clear(folder, written)
    if not written:
        raise NormdetError(f"{request.root} gave no image ({faults.count} faults): see above")
    groups = [item.group for item in written]
    given = [item.split for item in written]
    splits = splitting.assign(groups, given, args.val, args.test, args.seed, stated)
    warnings = [*notes, *_warnings(written, splits, args)]
    categories = _categories(written, declared or request.rule.classes)
    patients = {group: number for number, group in enumerate(dict.fromkeys(groups), start=1)}
    parts = {}
    for name in splitting.SPLITS:
        members = [item for item, where in zip(written, splits, strict=True) if where == name]
        if members:
            parts[name] = members
            write_json(folder / f"{name}.json", coco_content(members, categories, patients))
    fingerprint = fingerprint_of(parts, categories, collected.intensities.summary())
    fingerprint |= {
        "kind": request.kind,
        "labels": readings,
        "window": args.window,
        "axis": request.axis if request.kind == "nifti" else None,
        "neighbours": args.neighbours,
        "channels": args.channels,
        "planes": args.planes,
        "seed": args.seed,
        "faults": faults.count,
        "source_sha256": collected.digest,
    }
    if (scale := scale_of(fingerprint)) < 1:
        warnings.append(
            f"images are so large that the detector sees them at {scale:.2g} of their size: cut "
            "them into tiles first if objects are small"
        )
    bare, total = fingerprint["without_mask"], sum(fingerprint["objects"].values())
    if 0 < bare < total:
        warnings.append(
            f"{bare} of {total} objects have no mask: boxes alone are trained (MASK_ON is False) "
            "until these get one or are left out of the source"
        )
    write_json(folder / PREPARED, fingerprint, indent=1)
    write_configs(folder, fingerprint)
    draw(parts, folder / IMAGES, categories, folder / "contact_sheet.png")
    return _summary(parts, categories, readings, faults, warnings, collected)


def _collect(
    queue: list[Stack | None],
    request: Request,
    args: argparse.Namespace,
    journal: Journal,
    faults: Faults,
    console: Console,
) -> Collected:
    """Collect the images of all stacks; those that a stopped run finished are not read again."""
    settings = _settings(request, args)
    keys = [key_of(stack, settings) for stack in queue]
    if journal:
        done = f"{sum(key in journal for key in keys)} of {len(keys)}"
        console.print(f"going on where a run was stopped: {done} sources are done", soft_wrap=True)
    whole, taken = Collected(), set()
    for number in track(
        range(len(queue)),
        "preparing",
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ):
        # Release a stack when it is done, since it may hold its labels.
        stack, queue[number] = queue[number], None
        one = journal.get(keys[number], stack)
        if one is None or (one.faults and args.on_error == "stop"):
            one = _read(stack, request, args, journal.folder, faults, taken)
            journal.add(keys[number], stack, one)
        else:
            faults.count += one.faults
        taken |= {item.file_name for item in one.written}
        whole.add(one)
    return whole


def _settings(request: Request, args: argparse.Namespace) -> dict[str, Any]:
    """The settings that the images of a stack depend on, without its files."""
    return {
        "normdet": __version__,
        "kind": request.kind,
        "labels": asdict(request.rule),
        "axis": request.axis,
        "max_pixels": request.max_pixels,
        "window": args.window,
        "neighbours": args.neighbours,
        "channels": args.channels,
        "planes": args.planes,
        "skip_empty": args.skip_empty,
    }


def _read(
    stack: Stack,
    request: Request,
    args: argparse.Namespace,
    folder: Path,
    faults: Faults,
    taken: set[str],
) -> Collected:
    one, before = Collected(), faults.count
    digest = hashlib.sha256()
    try:
        for path in sorted(stack.source.paths):
            digest.update(_sha256(path))
        for item, limits in read_windowed(
            stack.source,
            parse_window(args.window),
            axis=request.axis,
            neighbours=args.neighbours,
            choice=request.choice,
            max_pixels=request.max_pixels,
            report=faults,
        ):
            try:
                entry = _write_one(stack, item, limits, folder, one, args, taken)
            except NormdetError as error:
                faults(str(error))
                continue
            if entry:
                one.written.append(entry)
                digest.update(json.dumps(entry.objects).encode())
    except NormdetError as error:
        faults(str(error))
    one.digest, one.faults = digest.hexdigest(), faults.count - before
    return one


def _write_one(
    stack: Stack,
    item: Slice,
    limits: tuple[float, float] | None,
    folder: Path,
    collected: Collected,
    args: argparse.Namespace,
    taken: set[str],
) -> Written | None:
    objects = stack.objects(item)
    ignored = [entry["ignored"] for entry in objects if "ignored" in entry]
    objects = [entry for entry in objects if "ignored" not in entry]
    collected.empty += not objects
    if not objects and args.skip_empty:
        return None
    pixels = apply_window(item.pixels, limits)
    file_name = file_name_of(item.name, pixels)
    if file_name in taken:
        raise NormdetError(f"{item.source} would replace {file_name}, which another image is")
    taken.add(file_name)
    collected.intensities.add(item.pixels, objects)
    sums = write_image(folder / IMAGES / file_name, pixels)
    group, is_patient = stack.group_of(item.patient)
    return Written(
        file_name,
        *item.pixels.shape[:2],
        objects,
        group,
        stack.split,
        is_patient,
        item.spacing,
        sums,
        item.source if item.patient is not None else None,
        ignored[0] if ignored else None,
    )


def _sha256(path: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.digest()


def _clear(folder: Path, written: Sequence[Written]) -> None:
    """Remove a stopped run's images of sources that have changed, and its unfinished files."""
    kept = {item.file_name for item in written}
    for path in (folder / IMAGES).iterdir():
        if path.name not in kept:
            path.unlink()
    for path in folder.iterdir():
        if path.name != IMAGES:
            path.unlink()


def _categories(written: Sequence[Written], declared: Sequence[str]) -> list[str]:
    """The declared classes in their order, then the others that occur, sorted."""
    met = {entry["category"] for item in written for entry in item.objects}
    if not met:
        raise NormdetError("no image has a single object: are the labels the right ones?")
    return [*declared, *sorted(met - set(declared))]


def _warnings(
    written: Sequence[Written], splits: Sequence[str], args: argparse.Namespace
) -> list[str]:
    found = []
    both = splitting.divided([item.group for item in written], splits)
    if both:
        found.append(f"{len(both)} patients have images in several splits of the source itself")
    if args.val > 0 and "val" not in splits and "test" not in splits:
        found.append("all images are of one patient or volume: there is nothing to validate on")
    kept = list(splits) == [item.split for item in written]
    if not kept and not any(item.patient for item in written):
        found.append(
            "no patient is known: split by image or volume (--patient finds them in file names)"
        )
    return found


def _summary(
    parts: dict[str, list[Written]],
    categories: Sequence[str],
    readings: Sequence[str],
    faults: Faults,
    warnings: Sequence[str],
    collected: Collected,
) -> str:
    lines = []
    for name, members in parts.items():
        objects = sum(len(item.objects) for item in members)
        groups = len({item.group for item in members if item.patient})
        of = f" of {groups} patients" if groups else ""
        lines.append(f"{name:<8} {len(members)} images{of}, {objects} objects")
    lines.append(f"classes  {', '.join(categories)}")
    lines += [f"labels   {reading}" for reading in readings]
    if collected.empty:
        lines.append(f"empty    {collected.empty} images hold no object")
    lines += [f"note     {warning}" for warning in warnings]
    lines.append(f"faults   {faults.count}")
    return "\n".join(lines)


def _replace(folder: Path, out: Path, old: Path) -> None:
    """Move the finished folder to its place, then delete the old one."""
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(out, old)
    os.rename(folder, out)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command's words."""
    parser = argparse.ArgumentParser(
        prog="normdet prepare",
        description=__doc__,
        epilog="kinds: " + "; ".join(f"{name}: {text}" for name, text in KINDS.items()),
    )
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="a folder, or a COCO JSON file")
    add("--out", required=True, type=Path, metavar="DIR", help="the folder to make")
    add("--overwrite", action="store_true", help="replace DIR where it exists")
    add("--kind", choices=list(KINDS), help="the kind of source; found out by default")
    add("--images", type=Path, metavar="DIR", help="where a COCO file's images are")
    add("--labels", type=Path, metavar="DIR", help="where the label files are")
    add(
        "--instances",
        choices=["auto", "values", "components"],
        default="auto",
        help="what an instance is in a label: a value, or a connected piece of one; by default a "
        "value if any label has two, and a piece if none has or --classes names several",
    )
    add(
        "--ignore",
        metavar="V,V",
        help="label values that are neither object nor background, or none; by default 255 in "
        "label images with a palette, which is VOC's border",
    )
    add(
        "--background",
        default="none",
        metavar="V,V",
        help="label values that mean no object, besides 0; none by default",
    )
    add("--classes", metavar="A,B", help="names of the labels: of all, or of value 1, 2, ...")
    add("--window", default="auto", metavar="WINDOW", help=f"{FORMS}; auto by default")
    add("--axis", choices=list(nifti.AXES), default="axial", help="along which volumes are cut")
    add(
        "--neighbours",
        type=int,
        default=0,
        metavar="N",
        help="make the slices N before and N after two of the three channels",
    )
    add("--channels", default="", metavar="A,B,C", help=f"of image files: {CHANNEL_FORMS}")
    add("--planes", default="all", metavar="N", help=f"of image files: {PLANE_FORMS}")
    add("--val", type=float, default=0.2, metavar="SHARE", help="of images to validate on")
    add("--test", type=float, default=0.0, metavar="SHARE", help="of images to test on")
    add("--seed", type=int, default=0, help="of the draw of splits")
    add(
        "--patient",
        metavar="REGEX",
        help="what in a file's path below SOURCE names the patient; DICOM's own ID by default",
    )
    add("--skip-empty", action="store_true", help="leave out images without an object")
    add_common(parser, "--anonymize", default=None)
    add(
        "--on-error",
        choices=["skip", "stop"],
        default="skip",
        help="what to do about a fault: go on without the image or object, or stop",
    )
    add(
        "--max-box-faults",
        type=float,
        default=MAX_BOX_FAULTS,
        metavar="SHARE",
        help="of boxes that may disagree with their masks or leave their image, "
        f"{MAX_BOX_FAULTS:g}",
    )
    add("--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="largest image read")
    args = parser.parse_args(argv)
    if not (args.val >= 0 and args.test >= 0 and args.val + args.test < 1):
        raise NormdetError(f"--val {args.val} --test {args.test}: shares that leave some to train")
    if args.neighbours < 0 or args.max_pixels < 1:
        raise NormdetError("--neighbours and --max-pixels are counts: 0 or 1 at the least")
    parse_window(args.window)
    try:
        re.compile(args.patient or "")
    except re.error as error:
        raise NormdetError(
            f"--patient {args.patient!r} is no regular expression: {error}"
        ) from error
    return args
