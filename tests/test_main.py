"""`main.py` as a user runs it, on small data and the smallest model."""

import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from main import BAR, losses_text, main, train_step
from tests.conftest import make_voc, save_mask, write_list
from utils.options import parse_args
from utils.run_folder import read_log
from utils.training_state import TrainingState

SMALL = (
    "--model", "deeplabv3plus_mobilenet", "--backbone_weights", "none", "--crop_size", 48,
    "--batch_size", 2, "--num_workers", 0, "--precision", "fp32", "--device", "cpu",
)  # fmt: skip


WITH_AND_WITHOUT = [0, pytest.param(1, marks=pytest.mark.slow)]  # data workers


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """The folder of a finished run of 7 iterations: two epochs of 3, and one more."""
    runs = tmp_path_factory.mktemp("runs")
    main([str(word) for word in flags(data, runs)])
    return runs / "voc_deeplabv3plus_mobilenet_ce"


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of the finished run, to go on with or to spoil."""
    return shutil.copytree(finished, tmp_path / finished.name)


def flags(data, runs, *more):
    places = ("--data_root", data, "--runs_dir", runs)
    return (*SMALL, *places, "--total_itrs", 7, "--step_size", 3, *more)


def load(path):
    return torch.load(path, weights_only=True)


def assert_same_run(one, other):
    """Same weights, best score and log, but for the clock."""
    for name in ("best.pth", "last.pth"):
        first, second = load(one / name), load(other / name)
        assert first["best_score"] == second["best_score"]
        assert first["cur_itrs"] == second["cur_itrs"]
        for key, value in first["model_state"].items():
            assert torch.equal(value, second["model_state"][key]), key
    logs = [read_log(one), read_log(other)]
    for record in (*logs[0], *logs[1]):
        del record["seconds"], record["val_seconds"]
    assert logs[0] == logs[1]


def test_log_has_a_line_per_evaluation(finished):
    records = read_log(finished)
    assert [record["iteration"] for record in records] == [3, 6, 7]
    assert [record["epoch"] for record in records] == [1, 2, 2.33]
    # What the last iteration used: the rate falls to a tenth behind the third and the sixth.
    assert [record["lr"] for record in records] == pytest.approx([0.01, 0.001, 0.0001])
    for record in records:
        assert {"train_loss", "lr", "backbone_lr", "seconds"} <= set(record)
        assert all(0 <= record[key] <= 1 for key in ("miou", "pixel_acc", "mean_acc", "fw_iou"))
        ious = [iou for iou in record["class_iou"].values() if iou is not None]
        assert record["miou"] == pytest.approx(np.mean(ious))
        assert list(record["class_iou"])[15] == "person"


def test_run_leaves_four_files_of_which_last_holds_a_resume_and_best_what_predicts(finished):
    names = sorted(path.name for path in finished.iterdir())
    assert names == [".lock", "args.json", "best.pth", "last.pth", "log.jsonl"]
    records = read_log(finished)
    best, last = load(finished / "best.pth"), load(finished / "last.pth")
    shared = {"format", "model_state", "class_names", "palette", "mean", "std", "args"}
    shared |= {"cur_itrs", "best_score"}
    assert set(best) == shared
    assert shared | {"optimizer_state", "scheduler_state"} <= set(last)
    assert best["best_score"] == last["best_score"] == max(record["miou"] for record in records)
    (best_record,) = (r for r in records if r["iteration"] == best["cur_itrs"])
    assert best_record["miou"] == best["best_score"] and last["cur_itrs"] == 7
    # SGD's momentum is as large as the weights.
    assert (finished / "best.pth").stat().st_size < 0.6 * (finished / "last.pth").stat().st_size


@pytest.mark.parametrize(
    ("seconds_an_iteration", "flags_", "expected"),
    [
        (0, [], [3, 7]),  # the first evaluation, then not for minutes, and the end
        # Three iterations are more than five minutes.
        pytest.param(101, [], [3, 6, 7], marks=pytest.mark.slow),
        pytest.param(0, ["--save_interval", 2], [2, 4, 6, 7], marks=pytest.mark.slow),
    ],
)
def test_last_is_saved_seldom_unless_asked(
    run, data, tmp_path, monkeypatch, seconds_an_iteration, flags_, expected
):
    saved, now = [], [0.0]
    save = TrainingState.save

    def slow_step(*args):
        now[0] += seconds_an_iteration
        return train_step(*args)

    def noted_save(self, path):
        saved.append(self.cur_itrs)
        save(self, path)

    monkeypatch.setattr("main.train_step", slow_step)
    monkeypatch.setattr(TrainingState, "save", noted_save)
    monkeypatch.setattr("main.time.perf_counter", lambda: now[0])
    assert run(main, *flags(data, tmp_path, *flags_)).status == 0
    assert saved == expected


def test_args_json_tells_settings_versions_command_and_data(finished, data):
    stored = json.loads((finished / "args.json").read_text())
    assert stored["args"]["total_itrs"] == 7 and stored["args"]["backbone_lr_factor"] == 1.0
    environment = stored["environment"]
    assert environment["torch"] == torch.__version__ and "git_commit" in environment
    assert (environment["device"], environment["precision"]) == ("cpu", "fp32")
    assert environment["processes"] == 1
    assert len(stored["class_names"]) == 21
    assert stored["command"].startswith("python main.py --model deeplabv3plus_mobilenet")
    assert f"--data_root {data}" in stored["command"]
    assert [stored["data"][name]["images"] for name in ("train", "val")] == [6, 4]
    assert stored["data"]["train"]["ids"] != stored["data"]["val"]["ids"]


def test_what_auto_came_to_is_stored_and_used_by_a_resume(run, data, tmp_path, monkeypatch):
    argv = [*flags(data, tmp_path), "--precision", "auto", "--total_itrs", 1]
    monkeypatch.setattr("utils.precision._has_bf16", lambda _: True)
    assert run(main, *argv).status == 0
    folder = next(tmp_path.iterdir())
    assert json.loads((folder / "args.json").read_text())["args"]["precision"] == "bf16"
    monkeypatch.setattr("utils.precision._has_bf16", lambda _: False)
    resume = ("--runs_dir", tmp_path, "--run_name", folder.name, "--resume", "--total_itrs", 2)
    ended = run(main, *resume)
    assert ended.status == 0 and "bf16 on cpu" in ended.stdout, ended.stderr
    assert "--precision fp32" in run(main, *resume, "--precision", "fp32").error


@pytest.mark.parametrize("num_workers", WITH_AND_WITHOUT)
def test_run_killed_between_log_and_checkpoint_resumes_to_the_same_run(
    run, finished, data, tmp_path, num_workers, monkeypatch
):
    class Killed(BaseException):
        pass

    save = TrainingState.save

    def save_or_die(self, path):
        if self.cur_itrs == 6:  # has been logged
            raise Killed
        save(self, path)

    monkeypatch.setattr(TrainingState, "save", save_or_die)
    with pytest.raises(Killed):
        main([str(word) for word in flags(data, tmp_path, "--save_interval", 1)])
    monkeypatch.undo()
    folder = tmp_path / finished.name
    assert [record["iteration"] for record in read_log(folder)] == [3, 6]
    torch.manual_seed(99)
    ended = run(main, *flags(data, tmp_path, "--resume", "--num_workers", num_workers))
    assert ended.status == 0 and "at iteration 5" in ended.stdout  # amid an epoch
    assert_same_run(finished, folder)


@pytest.mark.parametrize("num_workers", WITH_AND_WITHOUT)
def test_data_error_in_mid_run_saves_first_and_says_how_to_go_on(
    run, finished, data, tmp_path, num_workers
):
    root, folder = edited(data, tmp_path)
    image = folder / "JPEGImages" / "2008_000001.jpg"  # of the validation: its header is whole
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    argv = flags(root, tmp_path / "runs", "--num_workers", num_workers)
    error = run(main, *argv).error
    assert error.startswith(f"error: {image}: ") and "Traceback" not in error
    command = error.partition("; go on with python main.py ")[2]
    run_folder = tmp_path / "runs" / finished.name
    assert load(run_folder / "last.pth")["cur_itrs"] == 3
    image.write_bytes(whole)
    ended = run(main, *shlex.split(command), "--num_workers", 0)
    assert ended.status == 0 and "at iteration 3" in ended.stdout, ended.stderr
    assert_same_run(finished, run_folder)


def test_weights_that_are_not_finite_are_neither_saved_nor_scored(
    run, finished, data, tmp_path, monkeypatch
):
    steps = []

    def step_into_nothing(network, *others):
        loss = train_step(network, *others)
        steps.append(loss)
        if len(steps) == 6:  # what a gradient does that is not a number
            network.backbone.low_level_features[0][0].weight.data[0, 0, 0, 0] = float("nan")
        return loss

    monkeypatch.setattr("main.train_step", step_into_nothing)
    error = run(main, *flags(data, tmp_path)).error
    assert "the weights are not finite after iteration 6: lower --lr" in error
    folder = tmp_path / finished.name
    assert error.endswith(f"{folder / 'last.pth'} holds good weights")
    assert load(folder / "last.pth")["cur_itrs"] == 3
    assert [record["iteration"] for record in read_log(folder)] == [3]


def test_tensorboard_shows_losses_rates_and_scores(run, data, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert run(main, *flags(data, tmp_path, "--tensorboard", "--total_itrs", 3)).status == 0
    (folder,) = tmp_path.iterdir()
    shown = reader.EventAccumulator(str(folder)).Reload()
    assert [event.step for event in shown.Scalars("loss")] == [1, 2, 3]
    (record,) = read_log(folder)
    for name in ("miou", "train_loss", "lr", "class_iou/background"):
        (event,) = shown.Scalars(name)
        value = record["class_iou"]["background"] if "/" in name else record[name]
        assert (event.step, event.value) == (3, pytest.approx(value))


def test_tensorboard_that_is_not_there_is_one_line_before_the_training(
    run, data, tmp_path, monkeypatch
):
    monkeypatch.setattr("utils.run_folder.find_spec", lambda name: None)
    error = run(main, *flags(data, tmp_path, "--tensorboard")).error
    assert "--tensorboard: " in error and "pip install tensorboard" in error
    assert not list(tmp_path.iterdir())


def test_a_run_is_never_overwritten_unasked(run, finished, data):
    before = (finished / "last.pth").read_bytes()
    error = run(main, *flags(data, finished.parent)).error
    assert all(word in error for word in (str(finished), "--resume", "--overwrite", "--run_name"))
    assert (finished / "last.pth").read_bytes() == before


def test_overwrite_starts_again_once_the_new_run_can_start(run, finished, data, folder):
    argv = [*flags(data, folder.parent, "--overwrite"), "--total_itrs", 1]
    assert "nowhere" in run(main, *argv, "--image_set", "nowhere").error
    assert read_log(folder) == read_log(finished)
    del argv[2:4]  # --backbone_weights
    ended = run(main, *argv, "--ckpt", folder / "best.pth")
    assert ended.status == 0 and f"starts from {folder / 'best.pth'} (own)" in ended.stdout
    assert [record["iteration"] for record in read_log(folder)] == [1]


def test_bar_fits_80_columns_and_names_no_best_before_there_is_one():
    state = SimpleNamespace(best_score=0.0, evaluated_itrs=0, losses=SimpleNamespace(latest=1.2949))
    assert losses_text(state) == "loss 1.29"
    state.evaluated_itrs, state.best_score = 3, 0.2636
    assert losses_text(state) == "loss 1.29, best 26.4"
    parts = {"prefix": "epoch 12.5/25", "postfix": losses_text(state), "bar_format": BAR}
    line = tqdm.format_meter(2250, 4500, 9000.0, ncols=80, ascii=True, **parts)
    assert len(line) <= 80 and " 50%|##" in line and line.endswith("best 26.4]")


def test_resume_refuses_other_classes(run, tmp_path):
    folder = make_voc(tmp_path, num_classes=3)
    names = folder / "class_names.txt"
    names.write_text("background\ncat\ndog\n")
    argv = [*SMALL, "--dataset", "custom", "--data_root", folder, "--runs_dir", tmp_path / "runs"]
    assert run(main, *argv, "--total_itrs", 1).status == 0
    names.write_text("background\ndog\ncat\n")
    run_folder = next((tmp_path / "runs").iterdir())
    before = (run_folder / "args.json").read_bytes()
    error = run(main, *argv, "--total_itrs", 2, "--resume").error
    assert "other classes (class 'dog', where it was 'cat'): train on the run's classes" in error
    assert (run_folder / "args.json").read_bytes() == before


def test_resume_says_that_the_images_are_others(run, folder):
    stored = json.loads((folder / "args.json").read_text())
    stored["data"]["val"] = {"images": 3, "ids": "0"}
    (folder / "args.json").write_text(json.dumps(stored))
    ended = run(main, "--runs_dir", folder.parent, "--run_name", folder.name, "--resume")
    assert ended.status == 0
    assert "other val images (3, now 4)" in ended.stdout
    assert "other train images" not in ended.stdout


def test_end_shows_scores_best_epoch_and_what_to_type_next(run, data, tmp_path):
    ended = run(main, *flags(data, tmp_path, "--run_name", "a run", "--no_download"))
    records = read_log(tmp_path / "a run")
    best = max(records, key=lambda record: record["miou"])
    text = ended.stdout[ended.stdout.index("IoU by class") :]
    assert f"mIoU {100 * best['miou']:.2f}, pixel acc {100 * best['pixel_acc']:.2f}" in text
    assert f"best of 3 evaluations: epoch {best['epoch']:g}, iteration {best['iteration']}" in text
    for name in ("background", "person"):
        assert name in text
    assert "epoch 2.33, iteration 7: loss" in ended.stdout and "(best " in ended.stdout
    lines = [shlex.split(line.removeprefix("next:")) for line in text.splitlines()[-4:]]
    predict, second, sam, figures = ((words[1].removesuffix(".py"), words[2:]) for words in lines)
    assert predict == ("predict", ["--ckpt", str(tmp_path / "a run/best.pth"), "IMAGE_OR_FOLDER"])
    places = ["--runs_dir", str(tmp_path), "--data_root", str(data), "--no_download"]
    assert figures == ("visualize", places) and sam == ("sam_infer", places)
    args = parse_args("", second[1])
    assert (args.loss, args.crop_size, args.data_root) == ("focal", [48], str(data))
    assert (args.runs_dir, args.run_name) == (str(tmp_path), "a run_focal")


def test_resume_of_a_finished_run_does_nothing_and_cannot_be_shorter(run, folder):
    resume = ("--runs_dir", folder.parent, "--resume", "--run_name", folder.name)
    assert run(main, *resume).status == 0  # nothing left to do
    before = (folder / "args.json").read_bytes()
    assert "--total_itrs 3: 7 are done" in run(main, *resume, "--total_itrs", 3).error
    assert (folder / "args.json").read_bytes() == before


def test_args_file_runs_the_same_again(run, finished, tmp_path):
    assert run(main, "--args", finished / "args.json", "--runs_dir", tmp_path).status == 0
    assert_same_run(finished, tmp_path / finished.name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    ["focal", "ohem", "dice", "lovasz", "ce_lovasz", "ce --class_weights median_frequency"],
)
def test_every_loss_trains(run, data, tmp_path, loss):
    words = f"--loss {loss} --crop_val --total_itrs 1".split()
    ended = run(main, *flags(data, tmp_path, *words))
    assert ended.status == 0, ended.stderr
    assert "centre crops" in ended.stdout


STRONG = (
    "--ema_decay", 0.5, "--warmup_itrs", 3, "--aux_weight", 0.4, "--resize", 0.5,
    "--color_jitter", 0.3,
)  # fmt: skip


def test_average_is_what_is_scored_and_handed_on(run, data, tmp_path):
    assert run(main, *flags(data, tmp_path, *STRONG)).status == 0
    folder = next(tmp_path.iterdir())
    content = load(folder / "last.pth")
    trained, averaged = content["average"]["trained_state"], content["model_state"]
    assert content["average"]["updates"] == 7 and set(trained) == set(averaged)
    assert not torch.equal(trained["backbone.low_level_features.0.0.weight"],
                           averaged["backbone.low_level_features.0.0.weight"])  # fmt: skip
    argv = flags(data, tmp_path, "--test_only", "--ckpt", folder / "last.pth")
    assert run(main, *argv).status == 0
    scores, record = json.loads((folder / "scores_val_last.json").read_text()), read_log(folder)[-1]
    assert scores["miou"] == record["miou"] and scores["class_iou"] == record["class_iou"]
    assert scores["resize"] == 0.5


@pytest.mark.slow
def test_everything_that_a_recipe_can_add_resumes_to_the_same_weights(run, data, tmp_path):
    argv = flags(data, tmp_path, *STRONG)
    assert run(main, *argv, "--run_name", "whole").status == 0
    assert run(main, *argv, "--run_name", "parts", "--total_itrs", 4).status == 0
    resume = ("--runs_dir", tmp_path, "--run_name", "parts", "--resume", "--total_itrs", 7)
    assert run(main, *resume).status == 0
    one, other = (load(tmp_path / name / "last.pth") for name in ("whole", "parts"))
    for state, same in (
        (one["model_state"], other["model_state"]),
        (one["average"]["trained_state"], other["average"]["trained_state"]),
    ):
        assert all(torch.equal(value, same[key]) for key, value in state.items())
    assert one["average"]["updates"] == other["average"]["updates"]


def run_out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory")


TRAINING = ("--batch_size", "--crop_size", "--val_batch_size", "--precision")


@pytest.mark.parametrize(
    ("step", "more", "named"),
    [
        ("main.train_step", [], TRAINING),
        ("network._deeplab.DeepLab.to", ["--test_only"], TRAINING[2:]),
        ("utils.predictor.Predictor.__call__", ["--test_only"], TRAINING[2:]),
    ],
)
def test_out_of_memory_names_the_flags_that_lower_it(
    run, finished, data, tmp_path, monkeypatch, step, more, named
):
    monkeypatch.setattr(step, run_out_of_memory)
    ckpt = ["--ckpt", finished / "best.pth"] if more else []
    error = run(main, *flags(data, tmp_path), *more, *ckpt).error
    assert "out of memory: lower" in error
    assert [flag for flag in TRAINING if flag in error] == list(named)


# What bad input gets: one line, status 2.


def edited(data, tmp_path):
    """A copy of the data set to spoil."""
    shutil.copytree(data, tmp_path / "data")
    return tmp_path / "data", tmp_path / "data" / "VOCdevkit" / "VOC2012"


IMAGE, MASK = "JPEGImages/2007_000002.jpg", "SegmentationClass/2007_000002.png"
VAL_IMAGE = "JPEGImages/2008_000001.jpg"


@pytest.mark.parametrize(
    ("file", "spoil", "words"),
    [
        (IMAGE, Path.unlink, "2007_000002.jpg"),
        (MASK, lambda path: save_mask(path, np.full((48, 64), 30)), "value 30"),
        (VAL_IMAGE, lambda path: Image.new("RGB", (9, 9)).save(path), "2008_000001.jpg is 9x9"),
        (IMAGE, lambda path: path.write_bytes(path.read_bytes()[:500]), "2007_000002.jpg"),
    ],
)
def test_spoiled_data_is_named(run, data, tmp_path, file, spoil, words):
    root, folder = edited(data, tmp_path)
    spoil(folder / file)
    assert words in run(main, *flags(root, tmp_path / "runs")).error
    is_cut = file == IMAGE and (folder / file).exists()  # its header is whole
    assert is_cut or not (tmp_path / "runs").exists()  # said before the training


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--batch_size", 7], ["--batch_size 7", "only 6 images"]),
        (["--lr", 1e30], ["loss is", "iteration", "--lr"]),
        (["--device", "cuda:77"], ["--device cuda:77"]),
    ],
)
def test_impossible_flags_are_named(run, data, tmp_path, argv, words):
    error = run(main, *flags(data, tmp_path), *argv).error
    assert all(word in error for word in words), error


def test_one_list_for_training_and_evaluation_is_allowed(run, data, tmp_path):
    root, folder = edited(data, tmp_path)
    write_list(folder, "few", ["2007_000000", "2007_000001"])
    argv = flags(root, tmp_path / "runs", "--image_set", "few", "--val_image_set", "few")
    assert run(main, *argv, "--total_itrs", 1).status == 0
