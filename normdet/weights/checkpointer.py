"""The checkpointer: it loads safely, saves atomically, and reports what it loaded."""

import logging
import os
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from fvcore.common.config import CfgNode
from torch import nn

from normdet.errors import NormdetError
from normdet.files.atomic import TEMPORARY_SUFFIX, atomic_file

from .checks import check_weights
from .facts import describe
from .files import UnreadableFileError, carries_checksum, load_file, save_file
from .grey import sum_stem_channels
from .importers import Imported, import_weights, unwrap
from .integrity import unusable


@dataclass
class LoadReport:
    """Where a model's tensors came from.

    Attributes:
        source: path or URL as given; `""` if nothing was loaded.
        matched: the model's tensors that the file filled.
        missing: the model's tensors that the file does not have; they keep their start value.
        unexpected: the file's tensors that the model does not have, by detectron2's names.
        reinitialized: the model's tensors that the file has but that do not fit, and why.
        left_out: the file's tensors that have no counterpart in detectron2, by the file's names,
            and why.
        layout: the library whose names the file uses.
        verified: whether a checksum showed that the file is undamaged.
        warnings: one sentence each, from :func:`check_weights`.
    """

    source: str = ""
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reinitialized: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    layout: str = ""
    verified: bool = True
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.reinitialized)
        lines = [f"{len(self.matched)} of the model's {total} tensors loaded from {self.source}"]
        if not self.verified:
            lines.append("neither the file nor its name has a checksum: damage would not show")
        for why, n in Counter(self.left_out.values()).items():
            lines.append(f"left out: {n} of the file's tensors ({why})")
        lines += [f"{key} starts anew: {why}" for key, why in self.reinitialized.items()]
        for title, keys in (("not in the file", self.missing), ("not used", self.unexpected)):
            if keys:
                parts = Counter(".".join(key.split(".")[:2]) for key in keys)
                counts = ", ".join(f"{part} ({n})" for part, n in parts.items())
                lines.append(f"{title}: {counts}")
        return "\n".join(lines)


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer, with :func:`load_file` and :func:`save_file` underneath.

    Args:
        model: as detectron2's.
        save_dir: a local folder, used by this run alone.
        allow_unsafe: see :func:`load_file`.
        cfg: the run's config; with it, checkpoints carry its norms and input conventions, and
            loading checks them with :func:`check_weights`.
        kept: the model whose weights are saved, such as an average of the one that trains; by
            default `model`.
        save_to_disk: as detectron2's: by default on the main process alone.
        checkpointables: as detectron2's.

    Attributes:
        report: the :class:`LoadReport` of the last load.
        resumed: the file that :meth:`resume_or_load` resumed from, or `""`.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        allow_unsafe: bool = False,
        cfg: CfgNode | None = None,
        kept: nn.Module | None = None,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.allow_unsafe = allow_unsafe
        self.cfg = cfg
        self._kept = self.model if kept is None else kept
        self.report = LoadReport()
        self.resumed = ""
        self._imported = Imported({})
        # A thread that finds another worker gone may save while the main thread does.
        self._saving = threading.Lock()
        self.logger = logging.getLogger(__name__)

    def save(self, name: str, **extra: Any) -> None:
        """Write `name`.pth atomically, then point `last_checkpoint` at it.

        Raises:
            NormdetError: the disk refuses, or a value could not be loaded back safely.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        with self._saving:
            self._save(name, extra)

    def _save(self, name: str, extra: Mapping[str, Any]) -> None:
        # Temporary files of a killed save; the folder belongs to this run alone.
        for leftover in Path(self.save_dir).glob(f".*{TEMPORARY_SUFFIX}"):
            leftover.unlink(missing_ok=True)
        data = {"model": self._kept.state_dict()}
        data |= {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        if self.cfg is not None:
            data["normdet"] = describe(self.cfg)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        save_file(data | dict(extra), path)
        self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the checkpoint that a resumed run starts from."""
        with atomic_file(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load weights, and the state of the checkpointables named (all of them for `None`).

        Returns:
            What else the file holds.

        Raises:
            NormdetError: the file cannot be fetched, read or used with this config; or it holds
                none of the model's tensors, one that is not finite, or a state that does not fit.
                The model keeps its weights except in the last case.
        """
        self.report = LoadReport(source=path or "")
        if not path:
            return super().load(path, checkpointables)
        self._fetch(path)
        try:
            # Without its query, which detectron2 v0.6 would take for a part of the name.
            checkpoint = super().load(path.partition("?")[0], [])
        finally:  # detectron2 would refuse the next load after a failed one
            self._parsed_url_during_load = None
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in checkpoint:
                try:
                    self.checkpointables[key].load_state_dict(checkpoint.pop(key))
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    raise NormdetError(
                        f"{path} does not resume this run, its {key!r} state does not fit: {error}"
                    ) from error
        return checkpoint

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume from the folder's last checkpoint if `resume` and there is one, else load `path`.

        If the last checkpoint is damaged or missing, the run resumes from the latest intact one and
        logs so. If there is none to resume from, it logs that too. `resumed` is then the file it
        resumes from, or `""`.

        Raises:
            NormdetError: as :meth:`load`, or no checkpoint of the folder is intact.
        """
        self.resumed = self._file_to_resume() if resume else ""
        if not self.resumed:
            loaded = self.load(path, checkpointables=[])
            if resume:
                self.logger.warning("--resume: %s", self._nothing_to_resume(path, loaded))
            return loaded
        try:
            return self.load(self.resumed)
        except UnreadableFileError as error:
            intact = self._latest_intact()
            if intact is None:
                raise NormdetError(
                    f"{error}; {self.save_dir} has no intact checkpoint to resume from instead"
                ) from error
            self.logger.warning("%s; resuming from %s, the latest that is intact", error, intact)
            self.resumed = intact
            return self.load(intact)

    def _file_to_resume(self) -> str:
        if self.has_checkpoint():
            return self.get_checkpoint_file()
        # Checkpoints that were copied may lack this file.
        intact = self._latest_intact() if os.path.isdir(self.save_dir) else None
        if intact:
            self.logger.warning(
                "%s has no last_checkpoint; resuming from %s, the latest", self.save_dir, intact
            )
        return intact or ""

    def _nothing_to_resume(self, path: str, loaded: Mapping[str, Any]) -> str:
        start = f"with the weights of {path}" if path else "with its start values"
        text = f"{self.save_dir} has no checkpoint to resume from; the run starts {start}"
        if "iteration" not in loaded:
            return text
        return (
            f"{text} alone, at iteration 0; to go on with its optimizer after iteration "
            f"{loaded['iteration'] + 1}, set OUTPUT_DIR to its folder"
        )

    def _latest_intact(self) -> str | None:
        """This run's readable checkpoint with the highest iteration. Reads every checkpoint."""
        iterations = {}
        for file in self.get_all_checkpoint_files():
            try:
                checkpoint = load_file(file, allow_unsafe=self.allow_unsafe)
            except UnreadableFileError:
                continue
            if {"model", "iteration", *self.checkpointables} <= checkpoint.keys():
                iterations[file] = checkpoint["iteration"]
        return max(iterations, key=iterations.__getitem__, default=None)

    def _fetch(self, source: str) -> None:
        """Fetch the file before reading, so that a missing one gets a clear message."""
        try:
            local = self.path_manager.get_local_path(source.partition("?")[0])
        # Path handlers raise errors of any kind.
        except Exception as error:
            raise UnreadableFileError(f"{source} cannot be fetched: {error}") from error
        if not os.path.isfile(local):
            raise UnreadableFileError(f"{source} does not exist")

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Read a file as `{"model": tensors by name, ...}`, as detectron2 does."""
        source = self.report.source
        self.report.verified = carries_checksum(Path(filename))
        checkpoint = unwrap(load_file(filename, allow_unsafe=self.allow_unsafe), source)
        if filename.endswith(".pyth"):  # of pycls: a backbone's tensors without a prefix
            checkpoint["matching_heuristics"] = True
        query = parse_qs(source.partition("?")[2])
        if query.pop("matching_heuristics", None) == ["True"]:
            checkpoint["matching_heuristics"] = True
        if query:
            raise NormdetError(f"{source}: only ?matching_heuristics=True is known")
        for name, why in unusable(checkpoint["model"]).items():
            raise NormdetError(f"{source} is refused, its tensor {name} {why}")
        self._imported = import_weights(checkpoint, source)
        return {**checkpoint, "model": self._imported.model}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        report, imported = self.report, self._imported
        report.layout, report.left_out = imported.layout, imported.left_out
        if self.cfg is not None:
            report.warnings = check_weights(self.cfg, imported, report.source)
        state = self.model.state_dict()
        report.warnings += sum_stem_channels(state, imported.model)
        checkpoint.pop("matching_heuristics", None)
        if imported.partial:
            checkpoint["model"] = _align(state, imported.model, report.source)
        shapes = {k.removeprefix("module."): tuple(v.shape) for k, v in checkpoint["model"].items()}
        if not any(tuple(value.shape) == shapes.get(key) for key, value in state.items()):
            examples = " and ".join(repr(next(iter(names), "")) for names in (shapes, state))
            raise NormdetError(
                f"{report.source} has none of the model's tensors, nothing is loaded "
                f"(their first names are {examples})"
            )
        incompatible = super()._load_model(checkpoint)
        # Loading may have added stored moments, which converted norms anneal away.
        state = self.model.state_dict()

        missing, unexpected = set(incompatible.missing_keys), set(incompatible.unexpected_keys)
        misfits = {key: theirs for key, theirs, _ in incompatible.incorrect_shapes}
        # The heuristics put a tensor that does not fit under the end of its name in the model.
        for key in missing - misfits.keys():
            endings = [k for k in unexpected if key == k or key.endswith(f".{k}")]
            if endings:
                ending = max(endings, key=len)
                misfits[key] = shapes[ending]
                unexpected.discard(ending)
        filled = {state[key].data_ptr() for key in state if key in shapes and key not in misfits}
        for key in state:
            if key in misfits:
                ours = tuple(state[key].shape)
                report.reinitialized[key] = f"{misfits[key]} in the file, {ours} in the model"
            # A tensor with two names is filled if either name is.
            elif key in shapes or (key in missing and state[key].data_ptr() in filled):
                report.matched.append(key)
            # Batch counters are not weights. FrozenBN itself warns of missing statistics.
            elif key in missing and not key.endswith("num_batches_tracked"):
                report.missing.append(key)
        report.unexpected = sorted(k for k in unexpected if not k.endswith("num_batches_tracked"))
        return incompatible

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        self.logger.info("%s", self.report)
        for warning in self.report.warnings:
            self.logger.warning("%s", warning)


def last_checkpoint(folder: str) -> str:
    """The checkpoint that a folder's `last_checkpoint` names; `""` if there is none."""
    return Checkpointer(nn.Identity(), folder, save_to_disk=False).get_checkpoint_file()


def _align(state: Mapping, weights: dict, source: str) -> dict:
    """Match names that lack their prefix to the model's, by detectron2's heuristics."""
    try:
        return align_and_update_state_dicts(state, weights, c2_conversion=False)
    # The heuristics raise these on unknown names.
    except (AssertionError, IndexError, ValueError) as error:
        raise NormdetError(f"{source}: its names do not match the model's: {error}") from error
