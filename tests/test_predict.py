"""`predict.py` as a user runs it, on small images and the smallest model."""

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.segmentation import deeplabv3_resnet50

from datasets.colours import default_colours
from datasets.image_files import read_image
from datasets.voc import CLASS_NAMES
from main import main as train
from network.modeling import build_model
from predict import main
from tests.conftest import save_mask, write_list
from tests.test_main import SMALL
from tests.utils.test_checkpoint import randomize
from utils.checkpoint import describe_model
from utils.common.checkpoint_files import save_checkpoint
from utils.predict.overlay import draw_overlay
from utils.predictor import Predictor
from utils.run_folder import read_log

NAMES = ["zero", "one", "two", "three", "four"]
CPU = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """The folder of a run of two iterations."""
    runs = tmp_path_factory.mktemp("runs")
    train(
        [
            *(str(word) for word in SMALL),
            *("--data_root", str(data), "--runs_dir", str(runs), "--run_name", "one"),
            *("--total_itrs", "2"),
        ]
    )
    return runs / "one"


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    """An own checkpoint of random weights that tells its five classes apart."""
    torch.manual_seed(0)
    model = randomize(build_model("deeplabv3plus_mobilenet", num_classes=5, output_stride=8))
    path = tmp_path_factory.mktemp("ckpt") / "best.pth"
    args = {"model": "deeplabv3plus_mobilenet", "output_stride": 8}
    save_checkpoint(path, describe_model(model, args, NAMES))
    return path


@pytest.fixture
def photos(tmp_path):
    """A folder with three images of several kinds and sizes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, height, width in (("a.jpg", 48, 64), ("b.PNG", 33, 50), ("c.webp", 20, 20)):
        values = generator.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
        Image.fromarray(values).resize((width, height)).save(folder / name)
    return folder


def read_indices(path):
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.array(image)


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def test_files_and_folders_give_masks_and_overlays(run, photos, ckpt, tmp_path):
    other = tmp_path / "a.png"
    Image.new("L", (30, 40), 99).save(other)
    out = tmp_path / "out"
    ended = run(main, other, "--ckpt", ckpt, photos, "--output_dir", out, *CPU)
    assert ended.status == 0
    names = ["a", "a_2", "b", "c"]
    pairs = [f"{name}{end}" for name in names for end in (".png", "_overlay.png")]
    assert files_of(out) == sorted([*pairs, "predictions.csv"])
    shapes = [read_indices(out / f"{name}.png").shape for name in names]
    assert shapes == [(40, 30), (48, 64), (33, 50), (20, 20)]
    found = np.unique(np.concatenate([read_indices(out / f"{n}.png").ravel() for n in names]))
    assert f"classes found: {', '.join(NAMES[i] for i in found)}\n" in ended.stdout
    assert "4 of 4 images in " in ended.stdout
    assert "predict: " not in ended.stderr  # in a file the bar comes with the first half minute


def test_masks_are_what_the_model_says(run, photos, ckpt, tmp_path):
    run(main, photos / "b.PNG", "--ckpt", ckpt, "--output_dir", tmp_path, *CPU)
    model = build_model("deeplabv3plus_mobilenet", num_classes=5, output_stride=8).eval()
    model.load_state_dict(torch.load(ckpt, weights_only=True)["model_state"])
    values = np.asarray(Image.open(photos / "b.PNG").convert("RGB")) / np.float32(255)
    values = (values - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    with torch.inference_mode():
        logits = model.segment(torch.from_numpy(values).permute(2, 0, 1)[None])
    pred = read_indices(tmp_path / "b.png")
    assert len(np.unique(pred)) > 1
    assert (pred == logits.argmax(1)[0].numpy()).mean() > 0.999
    overlay = draw_overlay(read_image(photos / "b.PNG"), pred, NAMES, default_colours(NAMES))
    assert np.array_equal(Image.open(tmp_path / "b_overlay.png"), overlay)


def test_best_run_is_taken_and_named_also_behind_a_link(run, photos, trained, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "linked").symlink_to(trained)
    argv = (photos / "c.webp", "--runs_dir", tmp_path / "runs", "--output_dir", tmp_path / "out")
    ended = run(main, *argv, *CPU)
    assert ended.status == 0, ended.stderr
    line = next(line for line in ended.stdout.splitlines() if line.startswith("weights: "))
    assert str(tmp_path / "runs" / "linked" / "best.pth") in line
    assert "the best of 1 on voc" in line and "--ckpt FILE" in line
    assert "deeplabv3plus_mobilenet, output stride 16, 21 classes" in line


def test_torchvisions_weights_are_the_last_resort(run, photos, tmp_path, monkeypatch):
    torch.manual_seed(0)
    state = deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True).state_dict()
    asked = []
    monkeypatch.setattr(
        "utils.checkpoint.download_weights", lambda *names, instead: asked.append(names) or state
    )
    monkeypatch.chdir(tmp_path)
    ended = run(main, photos / "c.webp", *CPU)
    assert ended.status == 0
    assert asked == [("deeplabv3_resnet50", "COCO_WITH_VOC_LABELS_V1")]
    assert "torchvision, deeplabv3_resnet50, output stride 8, 21 classes" in ended.stdout
    found = ended.stdout.partition("classes found: ")[2].strip().split(", ")
    assert set(found) <= set(CLASS_NAMES)
    assert files_of(tmp_path / "predictions") == ["c.png", "c_overlay.png", "predictions.csv"]


def test_failed_download_names_ckpt(run, photos, tmp_path, monkeypatch):
    def fail(request):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.urlopen", fail)
    monkeypatch.chdir(tmp_path)
    error = run(main, photos, *CPU).error
    assert "deeplabv3_resnet50_coco" in error and "no network" in error and "--ckpt FILE" in error


def test_images_that_cannot_be_done_are_listed_and_the_others_done(
    run, photos, ckpt, tmp_path, monkeypatch
):
    predict = Predictor.predict_image

    def predict_in_small_memory(self, image):
        if image.shape[-1] == 51:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return predict(self, image)

    monkeypatch.setattr(Predictor, "predict_image", predict_in_small_memory)
    long = "x" * 246  # as a file of the system's; its overlay's name is too long
    (photos / "b.PNG").write_bytes((photos / "b.PNG").read_bytes()[:200])
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.gif").write_text("hello")
    for name, side in (("bomb", 100), ("large", 51), (long, 9)):
        Image.new("L", (side, side)).save(photos / f"{name}.png")
    argv = ("--ckpt", ckpt, "--output_dir", tmp_path / "out", "--max_pixels", 9999, *CPU)
    ended = run(main, photos, *argv)
    done = {"a.png", "a_overlay.png", "c.png", "c_overlay.png", "predictions.csv"}
    assert set(files_of(tmp_path / "out")) - {f"{long}.png"} == done
    assert "2 of 8 images" in ended.stdout
    reasons = {
        "b.PNG": "cannot be read",
        "bomb.png": "--max_pixels",
        "empty.jpg": "the file is empty",
        "large.png": "out of memory: give a smaller --window",
        "text.gif": "not an image",
        f"{long}.png": "File name too long",
    }
    for line, (name, reason) in zip(ended.failed, reasons.items(), strict=True):
        assert line.startswith(f"{photos / name}: ") and reason in line


def test_second_run_does_not_predict_the_results_of_the_first(run, photos, ckpt):
    argv = (photos, "--output_dir", photos, "--ckpt", ckpt, "--confidence", *CPU)
    assert "3 of 3 images" in run(main, *argv).stdout
    first = {name: (photos / name).read_bytes() for name in files_of(photos)}
    ended = run(main, *argv)
    assert "3 of 3 images" in ended.stdout
    assert f"{photos}: leaves out 9 x result of an earlier run" in ended.stderr
    assert {name: (photos / name).read_bytes() for name in files_of(photos)} == first


@pytest.mark.parametrize("flags", [(), ("--window", 32), ("--scales", 0.5, 1, "--flip")])
def test_predictions_as_numbers_are_those_of_the_masks(run, photos, ckpt, tmp_path, flags):
    """Whole, in windows, and with several views."""
    argv = (photos, "--ckpt", ckpt, "--confidence", "--output_dir", tmp_path / "out", *CPU)
    assert run(main, *argv, *flags).status == 0
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [str(path) for path in sorted(photos.iterdir())]
    for row in rows:
        file = tmp_path / "out" / Path(row.pop("image")).name
        pred = read_indices(file.with_suffix(".png"))
        shares = np.bincount(pred.ravel(), minlength=5) / pred.size
        assert list(row) == NAMES
        assert [float(share) for share in row.values()] == pytest.approx(shares, abs=1e-6)
        with Image.open(file.with_name(f"{file.stem}_confidence.png")) as image:
            assert image.mode == "L" and image.size == pred.shape[::-1]
            assert np.array(image).min() >= 255 // 5  # no class beats four others with less


def test_foreign_checkpoint_is_predicted_with_its_output_stride(run, photos, ckpt, tmp_path):
    torch.save(torch.load(ckpt, weights_only=True)["model_state"], tmp_path / "bare.pth")
    run(main, photos, "--ckpt", ckpt, "--output_dir", tmp_path / "own", *CPU)
    argv = (photos, "--ckpt", tmp_path / "bare.pth", "--output_dir", tmp_path / "foreign", *CPU)
    assert "--output_stride" in run(main, *argv).error and files_of(tmp_path / "foreign") == []
    ended = run(main, *argv, "--output_stride", 8)
    assert ended.status == 0 and "bare state dict" in ended.stdout
    for name in ("a.png", "b.png", "c.png"):
        own, foreign = (read_indices(tmp_path / folder / name) for folder in ("own", "foreign"))
        assert np.array_equal(own, foreign)
    assert "class 1" in ended.stdout.partition("classes found")[2]


def test_output_dir_that_cannot_be_made_is_named(run, photos, ckpt):
    error = run(main, photos, "--ckpt", ckpt, "--output_dir", photos / "a.jpg", *CPU).error
    assert "a.jpg: cannot be written (" in error and "give another --output_dir" in error


def test_split_repeats_the_logged_scores_with_the_runs_data(run, trained, data):
    argv = ("--ckpt", trained / "last.pth", "--num_workers", 0, "--metrics", "all", *CPU)
    ended = run(main, "--split", "val", *argv)
    assert ended.status == 0
    file = trained / "scores_val_last.json"  # beside the checkpoint
    scores = json.loads(file.read_text())
    file.unlink()
    record = read_log(trained)[-1]
    for key in ("pixel_acc", "mean_acc", "miou", "fw_iou", "class_iou"):
        assert scores[key] == record[key]
    assert f"mIoU {100 * record['miou']:.2f}" in ended.stdout
    ids = (data / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").read_text().split()
    expected = {
        "protocol": "whole images at native size", "images": 4, "scales": [1.0], "flip": False,
        "dataset": "voc", "image_set": "val", "data_root": str(data),
        "ids": hashlib.sha256("\n".join(ids).encode()).hexdigest()[:12],
    }  # fmt: skip
    assert expected.items() <= scores.items()
    present = [name for name, iou in scores["class_iou"].items() if iou is not None]
    absent = ended.stdout.partition("no pixel in the masks: ")[2].splitlines()[0].split(", ")
    assert "background" in present and "background" not in absent and set(absent) < set(CLASS_NAMES)
    assert "IoU, precision, recall, F1 by class" in ended.stdout
    for key in ("class_precision", "class_recall", "class_f1"):
        assert list(scores[key]) == list(CLASS_NAMES)


def test_test_only_and_split_score_the_same(run, trained, data, tmp_path):
    argv = ("--ckpt", trained / "best.pth", "--num_workers", 0, "--crop_val", *CPU)
    flags = ("--data_root", data, "--crop_size", 48)
    assert run(train, "--test_only", *argv, *flags).status == 0
    ended = run(main, "--split", "val", "--output_dir", tmp_path, *argv)  # flags are the run's
    files = (trained / "scores_val_crop48.json", tmp_path / "scores_val_one_crop48.json")
    one, other = (json.loads(file.read_text()) for file in files)
    files[0].unlink()
    assert one == other
    assert one["protocol"] == "centre crops: short side 48, centre square"
    assert one["protocol"] in ended.stdout


def test_saved_predictions_score_what_was_reported(run, trained, data, tmp_path):
    argv = ("--scales", 0.5, 1, "--flip", "--ckpt", trained / "best.pth", "--num_workers", 0, *CPU)
    run(main, "--split", "val", "--save_predictions", "--output_dir", tmp_path, *argv)
    masks = tmp_path / "predictions_val_one_scales0.5-1_flip"
    scores = json.loads((tmp_path / "scores_val_one_scales0.5-1_flip.json").read_text())
    assert scores["scales"] == [0.5, 1.0] and scores["flip"] is True
    folder = data / "VOCdevkit" / "VOC2012"
    ids = (folder / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    assert files_of(masks) == [*(f"{name}.png" for name in sorted(ids)), "predictions.csv"]
    right = counted = 0
    for name in ids:
        target = read_indices(folder / "SegmentationClass" / f"{name}.png")
        pred = read_indices(masks / f"{name}.png")
        right += ((pred == target) & (target != 255)).sum()
        counted += (target != 255).sum()
    assert scores["pixel_acc"] == pytest.approx(right / counted)
    rows = (masks / "predictions.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["image", *sorted(ids)]


def test_split_without_masks_is_predicted_and_has_no_scores(run, trained, data, tmp_path):
    folder = data / "VOCdevkit" / "VOC2012"
    write_list(folder, "test", ["photo_2", "photo_1"])  # as VOC's test list, without masks
    for name in ("photo_1", "photo_2"):
        shutil.copy(folder / "JPEGImages" / "2008_000000.jpg", folder / f"JPEGImages/{name}.jpg")
    argv = ("--split", "test", "--ckpt", trained / "best.pth", "--output_dir", tmp_path, *CPU)
    error = run(main, *argv).error
    assert "voc, test: has no masks, and so no scores: --save_predictions" in error
    ended = run(main, *argv, "--save_predictions")
    assert ended.status == 0 and "predictions alone, no scores" in ended.stdout
    assert files_of(tmp_path) == ["predictions_test_one", "predictions_test_one.json"]
    files = ["photo_1.png", "photo_2.png", "predictions.csv"]
    assert files_of(tmp_path / "predictions_test_one") == files
    image = folder / "JPEGImages" / "photo_1.jpg"
    expected = Predictor.from_checkpoint(trained / "best.pth", "cpu", "fp32").predict_image(image)
    assert np.array_equal(read_indices(tmp_path / "predictions_test_one/photo_1.png"), expected)
    run(main, *argv, "--save_predictions", "--window", 99)  # masks do not meet
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


def test_data_set_with_other_classes_is_refused(run, data, ckpt):
    error = run(main, "--split", "val", "--data_root", data, "--ckpt", ckpt, *CPU).error
    assert "best.pth: --dataset voc has other classes (21 classes, not 5)" in error
    assert files_of(ckpt.parent) == ["best.pth"]


def test_masks_of_one_class_are_not_scored(run, trained, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    folder = tmp_path / "data" / "VOCdevkit" / "VOC2012"
    for path in (folder / "SegmentationClass").glob("2008*.png"):
        save_mask(path, np.where(read_indices(path) == 255, 255, 0))
    argv = ("--data_root", tmp_path / "data", "--ckpt", trained / "best.pth", *CPU)
    error = run(main, "--split", "val", "--output_dir", tmp_path / "out", *argv).error
    assert "voc, val: its masks hold no other class than background" in error
    assert files_of(tmp_path / "out") == []
