"""`normdet bench` end to end on small shapes."""

import csv

import pytest
import torch

from normdet.errors import NormdetError
from normdet.lab.bench import main


def table(folder):
    (path,) = folder.rglob("*.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_one_table_with_every_peer(tmp_path):
    main(["--output", str(tmp_path), "--shapes", "2x32x5x7", "--seconds", "0.01", "--no-compile"])
    rows = table(tmp_path)
    assert {row["op"] for row in rows} == {
        "FRN+TLU", "FRN", "GN+ReLU", "LN+ReLU", "IN+ReLU", "FrozenBN+ReLU", "residual join",
    }  # fmt: skip
    frn = {row["provider"]: row for row in rows if row["op"] == "FRN+TLU"}
    assert {"normdet auto", "normdet reference", "nn.GroupNorm+ReLU", "FrozenBN+ReLU"} <= set(frn)
    activation = 2 * 32 * 5 * 7 * 4
    kept = int(frn["normdet auto"]["kept_bytes"])
    assert activation <= kept < 1.2 * activation < int(frn["normdet reference"]["kept_bytes"])
    assert activation <= int(frn["normdet auto"]["peak_bytes"]) < 4 * activation
    for row in rows:
        assert row["date"] and "torch" in row["versions"] and "--shapes 2x32x5x7" in row["command"]
        assert float(row["q25_ms"]) <= float(row["median_ms"]) <= float(row["q75_ms"])


def test_bad_arguments_are_one_sentence(tmp_path):
    with pytest.raises(NormdetError, match="'2x30x5x7' is not NxCxHxW"):
        main(["--output", str(tmp_path), "--shapes", "2x30x5x7"])
    if not torch.cuda.is_available():
        with pytest.raises(NormdetError, match="CUDA"):
            main(["--gpu"])


def test_a_stopped_run_is_resumed(tmp_path, monkeypatch):
    from normdet.lab.bench import command, step

    asked = []

    def rows(device, norms, size, seconds, done, budget, freeze_at):
        asked.append((norms, set(done)))
        for op in ("training step", "inference"):
            for norm in norms:
                if (op, norm) not in done:
                    yield step.row_of(op, norm, device, "2x3x64x96") | {"mode": "both"}
            if len(asked) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(command.step, "rows", rows)
    args = ["--step", "--output", str(tmp_path), "--norms", "BN", "GN", "--recompute"]
    with pytest.raises(KeyboardInterrupt):
        main(args)
    main([*args, "--resume"])
    norms = ("BN", "GN", "GN, recompute")
    assert asked == [(norms, set()), (norms, {("training step", norm) for norm in norms})]
    assert len(table(tmp_path)) == 6
    main(args)  # without the flag: measured anew
    assert asked[-1] == (norms, set())


@pytest.mark.slow
def test_routes_of_data(tmp_path):
    main(["--data", "--quick", "--scale", "0.2", "--output", str(tmp_path)])
    rows = table(tmp_path)
    tasks = {(row["task"], row["provider"]) for row in rows}
    assert {("register", "normdet"), ("register", "detectron2"), ("prepare", "normdet"),
            ("evaluate", "detectron2, pycocotools"), ("predict", "normdet")} <= tasks  # fmt: skip
    assert all(float(row["seconds"]) > 0 and float(row["growth"]) > 0 for row in rows)
    assert next(row["size"] for row in rows if row["task"] == "register") == "80"
