"""Read weight files without running code in them; write them whole or not at all."""

import json
import os
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from normdet.errors import NormdetError
from normdet.files.atomic import atomic_file
from normdet.files.faults import disk_fault
from normdet.weights.integrity import DamagedFileError, check_archive, check_name, hash_in_name
from normdet.weights.seal import (
    BY,
    SEAL,
    UNSEALED,
    SealedArchive,
    check_archive_seal,
    check_safetensors_seal,
    has_safetensors_seal,
    seal_safetensors,
)


class UnreadableFileError(NormdetError):
    """A weights file that is missing, damaged, of an unknown kind, or not safe to read."""


def load_file(path: str | os.PathLike, *, allow_unsafe: bool = False) -> dict[str, Any]:
    """Read a weights file without running anything it contains.

    `.safetensors` gives tensors by name; `.pth`, `.pt` and `.pyth` whatever `torch.load` admits as
    plain data, on the CPU; `.pkl` nested containers of numpy arrays. The hash in every file of
    :func:`save_file` is verified (:mod:`.seal`). So are the checksums of other files, if the format
    (`.pth` of torch >= 1.6) or the file's name (:func:`.integrity.check_name`) has them. This
    reads the file once more.

    Args:
        allow_unsafe: unpickle `.pkl` and `.pth` without restriction, which lets the file run any
            code; meant for a command-line flag and a file of one's own.

    Raises:
        UnreadableFileError: for anything but a readable file that holds a dict; it names the file.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise UnreadableFileError(
            f"{path}: weights come as {', '.join(_READERS)}, not as {path.suffix or 'no suffix'!r}"
        )
    if not path.is_file():
        raise UnreadableFileError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}")
    if path.stat().st_size == 0:
        raise UnreadableFileError(f"{path} is empty")
    try:
        check_name(path)
        loaded = reader(path, allow_unsafe)
    except _Hostile as error:
        raise UnreadableFileError(
            f"{path} is refused because {error}; weights need arrays and plain containers alone "
            "(--allow-unsafe-weights reads a file that you trust)"
        ) from error
    except DamagedFileError as error:
        raise UnreadableFileError(f"{path} is damaged: {error}") from error
    # A damaged stream can raise nearly anything, MemoryError and RecursionError included.
    except Exception as error:
        raise UnreadableFileError(
            f"{path} is damaged, cut short or not a {path.suffix} file: {_reason(error)}"
        ) from error
    if not isinstance(loaded, dict):
        raise UnreadableFileError(
            f"{path} holds a {type(loaded).__name__}, not a dict of tensors by name"
        )
    return loaded


def save_file(obj: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write a `.pth` or `.safetensors` file, atomically: a kill leaves the old file or the new.

    `.pth` takes any nesting of tensors, arrays and plain values, stored so that
    `torch.load(weights_only=True)` reads it back. `.safetensors` takes tensors by name, or
    `{"model": tensors by name, other: what JSON can hold}`; shared storage is stored twice.

    Raises:
        NormdetError: for an unknown suffix, a value that could not be read back safely, or a disk
            that refuses; an earlier file of that name is then untouched.
    """
    path = Path(path)
    writers = {".pth": _write_torch, ".pt": _write_torch, ".safetensors": _write_safetensors}
    if path.suffix not in writers:
        raise NormdetError(f"{path}: weights are written as {', '.join(writers)}")
    try:
        plain = _plain(obj)
        with atomic_file(path) as file:
            writers[path.suffix](plain, file)
    except NormdetError as error:
        raise NormdetError(f"{path} is not written: {error}") from error
    # torch reports a full disk as RuntimeError.
    except (OSError, RuntimeError, TypeError) as error:
        raise NormdetError(f"{path} cannot be written: {_reason(error)}") from error


def carries_checksum(path: Path) -> bool:
    """Whether a file or its name has a checksum that covers all its numbers."""
    if hash_in_name(path)[1] or (path.suffix != ".pkl" and zipfile.is_zipfile(path)):
        return True
    return path.suffix == ".safetensors" and has_safetensors_seal(path)


class _Hostile(Exception):
    """Raised if a file holds something other than data."""


def _reason(error: Exception) -> str:
    if text := disk_fault(error):
        return text
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


# torch's formats ----------------------------------------------------------------------------------


def _read_torch(path: Path, allow_unsafe: bool) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name):
                    raise _Hostile(f"its entry {name!r} points outside of it")
            check_archive(archive, path.stat().st_size, verified=check_archive_seal(path))
    try:
        return torch.load(path, map_location="cpu", weights_only=not allow_unsafe)
    except pickle.UnpicklingError as error:
        if blocked := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise _Hostile(f"it asks for {blocked[1]}") from error
        raise ValueError("its pickle does not parse as plain data") from error


def _write_torch(obj: Any, file: IO[bytes]) -> None:
    sealed = SealedArchive(file)
    torch.save(obj, sealed)
    sealed.close()


def _plain(obj: Any, name: str = "") -> Any:
    """`obj` in types that `torch.load(weights_only=True)` admits."""
    if obj is None or isinstance(obj, torch.Tensor | torch.dtype | torch.device):
        return obj
    if isinstance(obj, np.ndarray | np.generic):
        return torch.from_numpy(np.array(obj)) if obj.shape else obj.item()
    for kind in (bool, int, float, str, bytes):
        if isinstance(obj, kind):
            return kind(obj)
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if isinstance(obj, Mapping):
        items = ((_plain(k), _plain(v, f"{name}.{k}".lstrip("."))) for k, v in obj.items())
        if not hasattr(obj, "_metadata"):
            return dict(items)
        # A module's state dict: its `_metadata` has the versions that old files are upgraded by.
        plain = OrderedDict(items)
        plain._metadata = obj._metadata
        return plain
    if isinstance(obj, list | tuple):
        items = [_plain(v, f"{name}[{i}]") for i, v in enumerate(obj)]
        return tuple(items) if isinstance(obj, tuple) else items
    raise NormdetError(f"{name or 'it'} is a {type(obj).__name__}, which no safe reader admits")


# safetensors --------------------------------------------------------------------------------------


def _read_safetensors(path: Path, allow_unsafe: bool) -> dict[str, Any]:
    # Read one open file. `safe_open` opens the path again for the tensors; by then another save may
    # have replaced the file.
    data = path.read_bytes()
    check_safetensors_seal(data)
    tensors = safetensors.torch.load(data)
    header = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + header]).get("__metadata__", {})
    if "normdet" in metadata:
        return {"model": tensors, **json.loads(metadata["normdet"])}
    return tensors


def _write_safetensors(obj: dict[str, Any], file: IO[bytes]) -> None:
    nested = isinstance(obj.get("model"), dict)
    tensors = obj["model"] if nested else obj
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise NormdetError(f"{name} is a {type(tensor).__name__}, not a tensor")
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    metadata = {"format": "pt", BY: "normdet", SEAL: UNSEALED}
    if nested:
        metadata["normdet"] = json.dumps({k: v for k, v in obj.items() if k != "model"})
    file.write(seal_safetensors(safetensors.torch.save(tensors, metadata)))


# Pickles of numpy arrays --------------------------------------------------------------------------
#
# The names that a pickle may use build the stand-ins below, which only store their arguments. numpy
# gets a file's bytes in `_array` alone, as the buffer of a plain dtype. Each stand-in takes or
# refuses a state, since unpickling would otherwise set attributes of the class itself.


class _StandIn:
    value: np.ndarray | np.generic | None = None
    boxed: list | None = None

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"{type(self).__name__[1:]} with a state of its own")


class _Dtype(_StandIn):
    def __init__(self, text: str, *_: Any) -> None:
        self.objects = text == "O8"
        if not (isinstance(text, str) and re.fullmatch(r"[<>|=]?[biufcSU]\d{1,4}|O8", text)):
            raise pickle.UnpicklingError(f"arrays of dtype {text!r}")
        self.dtype = None if self.objects else np.dtype(text)

    def __setstate__(self, state: tuple) -> None:
        if not self.objects:
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array(_StandIn):
    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if dtype.objects:  # numpy's box around one object, as `np.save` of a dict makes it
            if shape != () or not isinstance(data, list) or len(data) != 1:
                raise pickle.UnpicklingError("arrays of objects")
            self.boxed = data
            return
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


class _Buffer(_StandIn):
    def __init__(self, data: bytes, dtype: _Dtype, shape: tuple, order: str, *_: Any) -> None:
        self.value = _array(data, dtype, shape, order)


class _Scalar(_StandIn):
    def __init__(self, dtype: _Dtype, data: bytes) -> None:
        self.value = _array(data, dtype, (), "C")[()]


class _Encoded(bytes):
    def __new__(cls, text: str = "", encoding: str = "latin1") -> "_Encoded":
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"bytes in {encoding!r}")
        return super().__new__(cls, text, "latin1")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("bytes with a state of their own")


def _array(data: Any, dtype: _Dtype, shape: tuple, order: str) -> np.ndarray:
    if isinstance(data, str):  # Python 2 wrote bytes as text
        data = data.encode("latin1")
    flat = np.frombuffer(data, dtype.dtype)
    return flat.astype(dtype.dtype.newbyteorder("=")).reshape(shape, order=order)


# The most objects in a pickle of arrays; a detector's has some thousand.
_MOST_OPCODES = 5_000_000

_ADMITTED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _Encoded,
    ("__builtin__", "bytes"): _Encoded,  # old protocols write b"" so
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _Scalar),
            ("numeric", "_frombuffer", _Buffer),
        )
    },
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _Hostile(f"it asks for {module}.{name}") from None


def _read_pickle(path: Path, allow_unsafe: bool) -> Any:
    with open(path, "rb") as file:
        if allow_unsafe:
            return pickle.load(file, encoding="latin1")
        return load_arrays(file)


def load_arrays(file: IO[bytes]) -> Any:
    """The arrays and plain containers of a pickle, from where an open file is; no code is run.

    Raises:
        Exception: of nearly any kind, where the pickle is damaged or asks for more.
    """
    begin = file.tell()
    _check_memo(file)
    file.seek(begin)
    return _resolve(_ArrayUnpickler(file, encoding="latin1").load(), {})


def _check_memo(file: IO[bytes]) -> None:
    """Refuse a pickle that is cut short, or that numbers a memo entry far beyond its length.

    The C unpickler allocates up to the highest number it meets, so one flipped bit takes gigabytes.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count > _MOST_OPCODES:
            raise ValueError(f"it has more than {_MOST_OPCODES:,} steps, which no weights need")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > count:
            raise ValueError("its memo is numbered out of order")


def _resolve(obj: Any, done: dict[int, Any]) -> Any:
    """`obj` with arrays in place of their stand-ins; each shared part is walked once."""
    if id(obj) in done:
        return done[id(obj)]
    if isinstance(obj, _Encoded):
        resolved: Any = bytes(obj)
    elif obj is None or isinstance(obj, bool | int | float | complex | str | bytes | bytearray):
        return obj
    elif isinstance(obj, dict):
        kind: Callable = OrderedDict if isinstance(obj, OrderedDict) else dict
        resolved = kind((_resolve(k, done), _resolve(v, done)) for k, v in obj.items())
    elif isinstance(obj, list | tuple):
        resolved = type(obj)(_resolve(v, done) for v in obj)
    elif isinstance(obj, _StandIn) and obj.value is not None:
        resolved = obj.value
    elif isinstance(obj, _StandIn) and obj.boxed is not None:
        resolved = _resolve(obj.boxed[0], done)
    else:
        raise pickle.UnpicklingError(f"it holds a {getattr(obj, '__name__', type(obj).__name__)}")
    done[id(obj)] = resolved
    return resolved


_READERS = {
    ".safetensors": _read_safetensors,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".pyth": _read_torch,
    ".tar": _read_torch,  # the ending of .pth.tar
    ".pkl": _read_pickle,
}
