"""Damage is reported if any sign shows it, and no file takes far more memory than its size."""

import hashlib
import pickle
import random
import time
import zipfile

import pytest
import safetensors.torch
import torch

from normdet.errors import NormdetError
from normdet.weights import UnreadableFileError, load_file, save_file
from normdet.weights.files import carries_checksum
from normdet.weights.importers import unwrap
from normdet.weights.integrity import unusable


def state():
    torch.manual_seed(0)
    return {"a.weight": torch.randn(4, 3, 3, 3), "b.running_var": torch.rand(4)}


def legacy(path):
    torch.save(state(), path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_the_hash_in_a_published_name_is_verified(tmp_path, suffix):
    plain = tmp_path / f"net{suffix}"
    {
        ".pth": legacy,
        ".safetensors": lambda path: safetensors.torch.save_file(state(), path),
        ".pkl": lambda p: p.write_bytes(pickle.dumps({k: v.numpy() for k, v in state().items()})),
    }[suffix](plain)
    assert not carries_checksum(plain)
    # Eight digits can all be decimal, as those of a date are.
    stated = hashlib.sha256(plain.read_bytes()).hexdigest()[:24]
    named = tmp_path / f"net-{stated}{suffix}"
    plain.rename(named)
    assert carries_checksum(named)
    load_file(named)
    data = bytearray(named.read_bytes())
    data[-5] ^= 4  # within the numbers
    named.write_bytes(data)
    with pytest.raises(UnreadableFileError, match=f"SHA-256 begins with {stated}, it begins"):
        load_file(named)


@pytest.mark.parametrize("name", ["run-20240115.pth", "the-facade.pth", "x-deadbeefs.pth"])
def test_dates_and_words_are_no_hashes(tmp_path, name):
    save_file(state(), tmp_path / name)
    load_file(tmp_path / name)


def test_the_zoo_s_names_are_verified(tmp_path):
    content = pickle.dumps({"model": {k: v.numpy() for k, v in state().items()}})
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    path = tmp_path / f"model_final_{digest[:6]}.pkl"
    path.write_bytes(content)
    assert carries_checksum(path)
    load_file(path)
    path.write_bytes(content.replace(b"a.weight", b"a.weighs"))
    with pytest.raises(UnreadableFileError, match=f"its MD5 begins with {digest[:6]}, it begins"):
        load_file(path)


OURS = [
    (suffix, nested) for suffix in (".pth", ".pt", ".safetensors") for nested in (False, True)
]


@pytest.mark.parametrize(("suffix", "nested"), OURS)
def test_ours_are_refused_whatever_byte_is_damaged(tmp_path, suffix, nested):
    """Numbers, names, padding, the archive's tables, and the seal itself."""
    path = tmp_path / f"a{suffix}"
    save_file({"model": state(), "iteration": 3, "normdet": {}} if nested else state(), path)
    assert carries_checksum(path)
    load_file(path)
    whole, draw = path.read_bytes(), random.Random(suffix)
    places = [draw.randrange(len(whole)) for _ in range(60)]
    places += [*range(len(whole) - 110, len(whole), 3), *range(0, 200, 7)]
    for number, place in enumerate(places):
        damaged = bytearray(whole)
        count = 1 if number % 3 else draw.randrange(1, 40)
        for at in range(place, min(place + count, len(whole))):
            damaged[at] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(UnreadableFileError):
            load_file(path)
    for length in [*range(0, len(whole), 41), *range(len(whole) - 100, len(whole))]:
        path.write_bytes(whole[:length])
        with pytest.raises(UnreadableFileError):
            load_file(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(UnreadableFileError):
        load_file(path)


def test_sealed_files_are_everybody_s(tmp_path):
    save_file(state(), tmp_path / "a.pth")
    save_file(state(), tmp_path / "a.safetensors")
    for read in (
        torch.load(tmp_path / "a.pth", weights_only=True),
        torch.load(tmp_path / "a.pth", weights_only=True, mmap=True),
        safetensors.torch.load_file(tmp_path / "a.safetensors"),
    ):
        assert all(torch.equal(read[name], value) for name, value in state().items())


def test_other_archives_may_have_notes(tmp_path):
    torch.save(state(), tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth", "a") as archive:
        archive.comment = b"made in a garden"
    load_file(tmp_path / "a.pth")


@pytest.mark.slow
def test_an_archive_that_unpacks_to_far_more_is_refused_at_once(tmp_path):
    torch.save({"x": torch.zeros(50_000_000)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(
        tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED
    ) as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    start = time.monotonic()
    with pytest.raises(UnreadableFileError, match=r"it unpacks to 0.2 GB from 0.2 MB"):
        load_file(tmp_path / "bomb.pth")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (torch.eye(3).to_sparse(), "'w' is a sparse tensor"),
        (torch.eye(3).to_sparse_csr(), "'w' is a sparse tensor"),
        (torch.empty(3, device="meta"), "'w' has a size and no numbers"),
        (torch.ones(3, dtype=torch.complex64), "'w' is a complex tensor"),
        (torch.ones(1).expand(8_000_000_000), "'w' asks for 32.000 GB and the file has 4 bytes"),
    ],
)
def test_tensors_that_are_no_arrays_are_refused(tmp_path, tensor, text):
    torch.save({"w": tensor}, tmp_path / "w.pth")
    with pytest.raises(UnreadableFileError, match=text):
        unwrap(load_file(tmp_path / "w.pth"), "w.pth")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("a.weight", float("nan"), "NaN or infinite"),
        ("a.weight", float("-inf"), "NaN or infinite"),
        ("a.weight", -1.7e19, "has values up to 1.7e\\+19"),
        ("b.running_var", -0.5, "negative variances"),
    ],
)
def test_values_that_no_network_has_are_named(name, value, text):
    weights = state()
    weights[name].view(-1)[1] = value
    with pytest.raises(NormdetError, match=text):
        raise NormdetError(unusable(weights)[name])
    assert not unusable(state())
    assert not unusable({"b.running_var": torch.tensor([4e9])})  # of raw pixels of 16 bits
