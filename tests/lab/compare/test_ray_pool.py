"""The same runs on a Ray cluster."""

import signal

import pytest

from tests.lab.compare.scheduled import alive, drain, fake, until


@pytest.mark.slow
def test_a_ray_cluster_runs_them_too(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    from normdet.lab.compare.ray_pool import RayPool

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    pool = RayPool("local", threads=1, share=0)
    try:
        for name in ("well", "crash", "diverge"):
            pool.submit(fake(tmp_path / name, name))
        ended = drain(pool, 300)  # a cluster takes its time to start
        assert {name: run.status for name, run in ended.items()} == {
            "well": "done", "crash": "crashed", "diverge": "diverged",
        }  # fmt: skip
        assert ended["well"].score("box_AP") == 40.0
        flying = fake(tmp_path / "flying", "hold")
        pool.submit(flying)
        until(lambda: (flying.folder / "metrics.json").exists())
        assert [task.title for task in pool.running] == ["flying"]
    finally:
        pool.close()
    assert not flying.result_file.exists()
    pid = int((flying.folder / "attempts").read_text())
    until(lambda: not alive(pid))


def test_an_address_where_no_cluster_answers_is_named():
    pytest.importorskip("ray")
    from normdet import NormdetError
    from normdet.lab.compare.ray_pool import RayPool

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(NormdetError, match="--ray nonsense"):
        RayPool("nonsense", 1, 0)
    assert signal.getsignal(signal.SIGTERM) is before
