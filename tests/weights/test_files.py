"""Reading refuses anything but plain, undamaged data; a save is whole or absent."""

import collections
import itertools
import multiprocessing
import os
import pickle
import random
import time
import zipfile

import numpy as np
import pytest
import torch

from normdet.errors import NormdetError
from normdet.weights import UnreadableFileError, load_file, save_file


class Hostile:
    """Unpickles to a call that leaves a file behind."""

    def __init__(self, function=os.system, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args or ("touch pwned",)


def refused(path):
    """The sentence with which `path` is refused."""
    with pytest.raises(UnreadableFileError) as info:
        load_file(path)
    message = str(info.value)
    assert path.name in message and "\n" not in message
    return message


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "pwned").exists()


def state():
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "e": torch.ones(0)}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays_load_exactly(tmp_path, protocol):
    model = {
        "f": np.arange(6, dtype=np.float32).reshape(2, 3),
        "big endian": np.arange(3, dtype=">i8"),
        "fortran": np.asfortranarray(np.random.default_rng(0).random((3, 4))),
        "scalar": np.float32(3.5),
        "empty": np.zeros((0, 3), np.float16),
    }
    whole = {
        "model": collections.OrderedDict(model),
        "plain": [1, (2.5, None, True), b"ab\xff", b"", "text"],
    }
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(whole, protocol))
    loaded = load_file(path)
    assert loaded["plain"] == whole["plain"]
    assert list(loaded["model"]) == list(model)
    for name, array in model.items():
        got = loaded["model"][name]
        assert type(got) is type(array) and got.shape == array.shape
        assert got.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(got, array)


def test_python_2_pickle_loads(tmp_path):
    """Zoo files were written by Python 2: text for bytes, and numpy's old module names."""
    data = np.arange(3, dtype="<f4").tobytes()
    text = b"U" + bytes([len(data)]) + data  # SHORT_BINSTRING
    path = tmp_path / "w.pkl"
    path.write_bytes(
        b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x03\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + text + b"tbs."
    )
    np.testing.assert_array_equal(load_file(path)["w"], np.arange(3, dtype=np.float32))


@pytest.mark.parametrize(
    "payload",
    [
        Hostile(),
        {"model": [1, [Hostile()]]},
        {"model": {"w": (np.ones(3), Hostile(eval, "open('pwned', 'w')"))}},
        Hostile(exec, "open('pwned', 'w')"),
        Hostile(np.load, "x.npy"),
        Hostile(getattr, "", "format"),
        os.system,
    ],
    ids=["system", "in lists", "eval by an array", "exec", "numpy.load", "getattr", "function"],
)
def test_hostile_pickles_are_refused(folder, payload):
    path = folder / "w.pkl"
    path.write_bytes(pickle.dumps(payload))
    assert "it asks for" in refused(path)
    for zipped in (True, False):
        path = folder / "w.pth"
        torch.save(payload, path, _use_new_zipfile_serialization=zipped)
        assert "it asks for" in refused(path)


@pytest.mark.parametrize(
    "payload",
    [
        {"a": np.array([{}, None], dtype=object)},
        {"a": np.zeros(2, dtype=[("x", "f4")])},
        {"a": np.dtype("f4")},
        [np.ones(3)],
        np.ones(3),
    ],
    ids=["objects", "structured", "a dtype alone", "list", "array"],
)
def test_other_content_is_refused(folder, payload):
    path = folder / "w.pkl"
    path.write_bytes(pickle.dumps(payload))
    refused(path)


@pytest.mark.parametrize(
    "stream",
    [
        b"\x80\x02cnumpy\ndtype\n}\x8c\x08__init__Nsb.",  # a state for the class itself
        b"\x80\x02c_codecs\nencode\nN}\x8c\x07__new__Ns\x86b.",
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo of two billion entries
        b"\x80\x04]\x94h\x00a.",  # a list that contains itself
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R(K\x01J\xff\xff\xff\x7f\x85NK\x00Ntb.",
        b"\x80\x02c_codecs\nencode\n\x8c\x01a\x8c\x03hex\x86R.",
    ],
    ids=["class state", "class slots", "memo", "cycle", "array of nothing", "codec"],
)
def test_crafted_streams_are_refused(folder, stream):
    path = folder / "w.pkl"
    path.write_bytes(stream)
    refused(path)
    path.write_bytes(pickle.dumps({"w": b"x"}, 2))
    assert load_file(path) == {"w": b"x"}  # nothing of it stayed behind


def test_shared_parts_are_walked_once(tmp_path):
    bomb = [1]
    for _ in range(60):
        bomb = [bomb, bomb]
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"w": bomb}))
    assert len(load_file(path)["w"]) == 2


def test_unsafe_is_for_those_who_ask(tmp_path):
    for suffix in (".pkl", ".pth"):
        path = tmp_path / f"w{suffix}"
        payload = {"when": Hostile(time.gmtime, 0)}
        path.write_bytes(pickle.dumps(payload)) if suffix == ".pkl" else torch.save(payload, path)
        refused(path)
        assert load_file(path, allow_unsafe=True)["when"].tm_year == 1970


def test_zip_entries_stay_inside(folder):
    path = folder / "w.pth"
    torch.save(state(), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../pwned", b"x")
    assert "'../../pwned' points outside" in refused(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    assert "does not exist" in refused(tmp_path / "w.pth")
    (tmp_path / "d.pth").mkdir()
    assert "is a folder" in refused(tmp_path / "d.pth")
    for suffix in (".pth", ".pth.tar", ".pt", ".pyth", ".pkl", ".safetensors"):
        path = tmp_path / f"w{suffix}"
        path.touch()
        assert "is empty" in refused(path)
        path.write_bytes(b"<html>404</html>" * 50)
        refused(path)
    for name in ("w.npz", "w", "w.h5"):
        (tmp_path / name).write_bytes(b"x")
        assert ".safetensors, .pth" in refused(tmp_path / name)


@pytest.fixture(params=["zip.pth", "old.pth", "w.safetensors", "w.pkl"])
def valid(request, tmp_path):
    """A valid file in each format, and what it holds."""
    path = tmp_path / request.param
    tensors = {f"layer{i}.weight": torch.randn(5, 7) for i in range(20)}
    if path.name == "old.pth":  # of torch before 1.6
        torch.save(tensors, path, _use_new_zipfile_serialization=False)
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps({k: v.numpy() for k, v in tensors.items()}, 2))
    else:
        save_file(tensors, path)
    return path, tensors


def test_cut_short_at_any_length_is_refused(valid):
    path, _ = valid
    whole = path.read_bytes()
    for length in sorted({*range(1, len(whole), 97), len(whole) - 1}):
        path.write_bytes(whole[:length])
        refused(path)


@pytest.mark.slow
def test_flipped_bits_are_refused_or_harmless(valid):
    """A checksum finds a flip, or only values change; there is no crash and no other type."""
    path, tensors = valid
    whole = path.read_bytes()
    rng = random.Random(0)
    changed = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = load_file(path)
        except UnreadableFileError:
            continue
        changed += not equal(
            {k: torch.as_tensor(v) for k, v in loaded.items() if not isinstance(v, str)}, tensors
        )
    if path.name not in ("old.pth", "w.pkl"):  # which have no checksum
        assert not changed


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_saved_files_load_equal(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    save_file(state(), path)
    assert equal(load_file(path), state())
    whole = {"model": state(), "normdet": {"norms": {"A": "GN"}, "mean": [1.5]}, "iteration": 3}
    save_file(whole, path)
    loaded = load_file(path)
    assert equal(loaded.pop("model"), state())
    assert loaded == {k: v for k, v in whole.items() if k != "model"}


def test_half_precision_and_shared_storage_survive_safetensors(tmp_path):
    shared = torch.randn(4, 4)
    tensors = {"a": shared, "b": shared.t(), "h": shared.bfloat16(), "t": torch.tensor(True)}
    save_file(tensors, tmp_path / "w.safetensors")
    assert equal(load_file(tmp_path / "w.safetensors"), tensors)


def test_a_trainer_s_state_is_made_loadable(tmp_path):
    path = tmp_path / "w.pth"
    kept = collections.defaultdict(int, best=np.float64(0.5), n=np.int64(3), at=np.arange(3))
    save_file({"trainer": {"hooks": kept, "lrs": (np.float32(0.5), 1)}, "dtype": torch.half}, path)
    loaded = load_file(path)
    assert loaded["dtype"] is torch.half
    assert loaded["trainer"]["lrs"] == (0.5, 1)
    assert loaded["trainer"]["hooks"].pop("at").tolist() == [0, 1, 2]
    assert loaded["trainer"]["hooks"] == {"best": 0.5, "n": 3}
    with pytest.raises(NormdetError, match=r"trainer\.hooks\[1\] is a Hostile"):
        save_file({"trainer": {"hooks": [1, Hostile()]}}, path)
    assert load_file(path)["trainer"]["lrs"] == (0.5, 1)


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    save_file(state(), path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NormdetError, match=r"w\.pth cannot be written: .*No space left"):
        save_file({"a": torch.zeros(1)}, path)
    assert equal(load_file(path), state())
    assert os.listdir(tmp_path) == ["w.pth"]
    for bad in (tmp_path / "w.pkl", tmp_path / "none" / "w.pth"):
        with pytest.raises(NormdetError, match=bad.name):
            save_file(state(), bad)


def save_forever(path):
    for n in itertools.count(1):
        save_file({"n": torch.full((20_000,), float(n))}, path)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_kill_during_save_leaves_a_whole_file(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    save_file({"n": torch.zeros(20_000)}, path)
    delay = random.Random(0)
    for _ in range(15):
        saver = multiprocessing.get_context("fork").Process(target=save_forever, args=(path,))
        saver.start()
        time.sleep(0.02 + 0.05 * delay.random())
        # A reader finds the values of one save, also after the kill.
        assert len(load_file(path)["n"].unique()) == 1
        saver.kill()
        saver.join()
        assert len(load_file(path)["n"].unique()) == 1
    assert load_file(path)["n"][0] > 0
