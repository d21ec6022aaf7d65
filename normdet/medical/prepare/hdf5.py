"""Run as a program, this prints the array of an HDF5 file: its library dies of damaged files.

Arguments are the file and the most elements to read. The first line of the output is JSON: the
array's dtype, shape and axes. Its bytes follow if it is no larger. A fault is a sentence on the
standard error, after which the program ends with 2.
"""

import sys

if __name__ == "__main__":
    del sys.path[0]  # this folder, whose names would hide modules of Python

import json
import math

# ilastik's name for what it exports.
_EXPORTED = "exported_data"
# A chunk is unpacked whole, however little of it is read.
_LARGEST_CHUNK = 256 << 20


def main(path: str, most: int) -> None:
    """Print the only array of the file `path`, or ilastik's.

    Raises:
        ValueError: there is none, or it is not in the file itself.
    """
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        array = _only_array(file)
        tags = array.attrs.get("axistags")
        head = {
            "dtype": array.dtype.str,
            "shape": array.shape,
            "axes": tags and [str(axis["key"]) for axis in json.loads(tags)["axes"]],
        }
        out = sys.stdout.buffer
        out.write(json.dumps(head).encode() + b"\n")
        if array.dtype.kind in "iub" and array.size <= most:
            out.write(array[()].tobytes())


def _only_array(file):
    import h5py

    # Other links than hard ones can lead to other files.
    names = [name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)]
    arrays = {name: file[name] for name in names if isinstance(file[name], h5py.Dataset)}
    array = arrays.get(_EXPORTED)
    if array is None:
        if len(arrays) != 1:
            raise ValueError(f"holds {len(arrays)} arrays, and none is {_EXPORTED}")
        (array,) = arrays.values()
    if array.external or array.is_virtual:
        raise ValueError("keeps its array in other files")
    if math.prod(array.chunks or ()) * array.dtype.itemsize > _LARGEST_CHUNK:
        raise ValueError(f"is packed in chunks of {array.chunks}, too large to be read")
    return array


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]))
    except ValueError as fault:
        print(fault, file=sys.stderr)
        sys.exit(2)
    except Exception as fault:  # a damaged file can raise nearly any exception
        print(f"cannot be read as HDF5 ({type(fault).__name__})", file=sys.stderr)
        sys.exit(2)
