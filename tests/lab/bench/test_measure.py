"""Times by turns, and bytes of every buffer once."""

import torch

from normdet.lab.bench import measure


def test_steps_take_turns():
    order = []
    steps = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = measure.interleaved(steps, "cpu", 0.0)
    assert order[:4] == ["a", "a", "b", "b"]  # warming up
    assert order[4:] == ["a", "b"] * 5
    assert len(times["a"]) == len(times["b"]) == 5


def test_kept_bytes_count_each_buffer_once():
    x = torch.randn(10, 10, requires_grad=True)
    weight = torch.randn(10, requires_grad=True)
    assert measure.kept_bytes(lambda: x * weight + x * x, [weight]) == 400


def test_memory_is_counted_by_the_allocator():
    x = torch.randn(100, 100, requires_grad=True)

    def forward():
        return (x * 2).relu().mul(3).exp().sum()

    assert measure.held_bytes(forward, "cpu") // 1000 == 80  # relu's output and exp's
    assert measure.peak_bytes(forward, "cpu") // 1000 == 120  # and mul's, for a moment
