"""What the end of a training says of its run."""

import json
import math

import pytest

from utils.run_records import load_run, summarise


def write_run(folder, mious, memory=None):
    folder.mkdir()
    stored = {"args": {"dataset": "custom"}, "class_names": ["sky", "road"], "environment": {}}
    (folder / "args.json").write_text(json.dumps(stored))
    records = [
        {
            "iteration": 10 * k, "epoch": k, "miou": miou, "pixel_acc": 0.9, "mean_acc": 0.7,
            "fw_iou": 0.8, "class_iou": {"sky": miou, "road": None}, "seconds": 1850.0 * k,
            "max_memory_mb": memory,
        }
        for k, miou in enumerate(mious, start=1)
    ]  # fmt: skip
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return load_run(folder)


def test_summary_shows_the_best_evaluation_the_costs_and_the_next_commands(tmp_path):
    text = summarise(write_run(tmp_path / "my run", [0.25, 0.5, 0.4], memory=6861.2))
    assert "  sky    50.00\n  road       -\n" in text
    assert "mIoU 50.00, pixel acc 90.00, mean acc 70.00, fw IoU 80.00" in text
    assert f"best of 3 evaluations: epoch 2, iteration 20, in {tmp_path / 'my run'}" in text
    assert "1:32:30 h, 6,861 MB of GPU memory" in text
    best = tmp_path / "my run" / "best.pth"
    assert f"python predict.py --ckpt '{best}' IMAGE_OR_FOLDER" in text
    assert f"python visualize.py --runs_dir {tmp_path} --dataset custom" in text


def test_summary_of_a_run_on_a_cpu_names_no_gpu(tmp_path):
    assert "GPU" not in summarise(write_run(tmp_path / "run", [0.25]))


def test_score_that_is_not_a_number_is_not_the_best(tmp_path):
    run = write_run(tmp_path / "run", [0.25, math.nan])
    assert "mIoU 25.00" in summarise(run)
    assert len(run.notes) == 1 and "miou not a number at iteration 20" in run.notes[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_settings_are_read_with_an_editors_byte_order_mark(tmp_path, encoding):
    write_run(tmp_path / "run", [0.25])
    path = tmp_path / "run" / "args.json"
    path.write_text(path.read_text(), encoding=encoding)
    assert load_run(tmp_path / "run").class_names == ["sky", "road"]
