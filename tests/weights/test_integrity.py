"""Damage is told wherever something tells it, and no file takes more than it is."""

import hashlib
import pickle
import time
import zipfile

import pytest
import safetensors.torch
import torch

from normdet.errors import NormdetError
from normdet.weights import UnreadableFileError, load_file, save_file
from normdet.weights.importers import unwrap
from normdet.weights.integrity import carries_checksum, unusable


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
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()
    named = tmp_path / f"net-{digest[:8]}{suffix}"
    plain.rename(named)
    assert carries_checksum(named)
    load_file(named)
    data = bytearray(named.read_bytes())
    data[-5] ^= 4  # within the numbers
    named.write_bytes(data)
    with pytest.raises(UnreadableFileError, match=f"SHA-256 begins with {digest[:8]}, it begins"):
        load_file(named)


@pytest.mark.parametrize("name", ["run-20240115.pth", "the-facade.pth", "x-deadbeefs.pth"])
def test_dates_and_words_are_no_hashes(tmp_path, name):
    save_file(state(), tmp_path / name)
    load_file(tmp_path / name)


def test_ours_carry_a_checksum(tmp_path):
    for name in ("a.pth", "a.safetensors"):
        save_file(state(), tmp_path / name)
        assert carries_checksum(tmp_path / name)


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
