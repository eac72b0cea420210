"""Turn-taking of measurements, without measuring anything."""

from __future__ import annotations

import json

from slimvit_jax.inference.timing import Timing, describe_machine, interleave, sampler


def test_interleave_takes_turns_and_reverses_them():
    asked, seen = [], []

    def fake(name: str, seconds: float):
        def sample(repeats: int) -> tuple[float, float]:
            asked.append((name, repeats))
            return seconds, 2 * seconds

        return sample

    timings = interleave({"a": fake("a", 0.01), "b": fake("b", 0.2)}, 3, min_seconds=0.05, progress=seen.append)
    assert asked[:4] == [("a", 1), ("a", 1), ("b", 1), ("b", 1)]  # warm-up and length of each
    assert asked[4:] == [("a", 5), ("b", 1), ("b", 1), ("a", 5), ("a", 5), ("b", 1)]
    assert seen == ["a", "b", "b", "a", "a", "b"]
    assert timings["a"] == Timing((0.01,) * 3, (0.02,) * 3)


def test_sampler_divides_by_the_repeats():
    calls = []
    wall, cpu = sampler(lambda: calls.append(1))(4)
    assert len(calls) == 4 and wall >= 0 and cpu >= 0


def test_median_is_robust_and_machine_is_json():
    assert Timing((1.0, 9.0, 2.0), (0.5, 0.1, 0.3)).median == 2.0
    assert Timing((1.0,), (0.5, 0.1, 0.3)).median_cpu == 0.3
    assert json.loads(json.dumps(describe_machine()))["versions"]["jax"]
