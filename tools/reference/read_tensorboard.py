"""Reads a run's TensorBoard files with TensorBoard's own reader and holds them against metrics.jsonl.

    pip install tensorboard && python read_tensorboard.py runs/small
"""

import json
import math
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TAGS = {
    "train_loss": "loss/train",
    "flip_rate": "rate/flips",
    "lr": "rate/lr",
    "tokens_per_s": "speed/tokens_per_s",
    "val_loss": "loss/validation",
    "bits_per_byte": "bits_per_byte/validation",
}


def main(run: Path) -> None:
    board = EventAccumulator(str(run / "tb"), size_guidance={"scalars": 0})
    board.Reload()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "event" not in row]
    for key, tag in TAGS.items():
        expected = [(row["step"], row[key]) for row in rows if key in row]
        found = [(event.step, event.value) for event in board.Scalars(tag)]
        assert [step for step, _ in found] == [step for step, _ in expected], tag
        for (step, want), (_, got) in zip(expected, found):
            assert math.isclose(want, got, rel_tol=1e-6), (tag, step, want, got)
        print(f"{tag}: {len(found)} values as in metrics.jsonl")
    times = [event.wall_time for event in board.Scalars("loss/train")]
    assert times == sorted(times), "wall times fall"


main(Path(sys.argv[1]))
