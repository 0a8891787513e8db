import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

import sam_infer
from datasets.image_files import image_size
from network.modeling import build_model
from tests.conftest import save_sample, write_list
from utils.checkpoint import describe_model
from utils.common.checkpoint_files import save_checkpoint
from utils.common.errors import UserError
from utils.common.files import write_json
from utils.sam import mask_maker, weights
from utils.sam.mask_files import load_masks
from utils.sam.mask_maker import MaskMaker, _Resize
from utils.sam.regions import Prompts, component_prompts
from utils.sam.weights import WIDTH_KEY, SamModel, file_checksum, find_weights, load_sam

WIDTH, SIDE = 32, 64  # of the small SAM: channels, and pixels of what it sees
ALL_MASKS = {"pred_iou_thresh": 0, "stability_score_thresh": 0}
EVERYTHING = ("--pred_iou_thresh", 0, "--stability_score_thresh", 0, "--points_per_side", 3)
CLASS_NAMES = ["background", "disc", "square"]


def build_small_sam(width: int = WIDTH) -> Sam:
    """The package's own parts, small: 2 blocks, windows of 2 and global attention."""
    grid = (SIDE // 16, SIDE // 16)
    return Sam(
        ImageEncoderViT(
            img_size=SIDE, embed_dim=width, depth=2, num_heads=2, out_chans=16, use_rel_pos=True,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), window_size=2,
            global_attn_indexes=(1,),
        ),
        PromptEncoder(16, grid, (SIDE, SIDE), mask_in_chans=4),
        MaskDecoder(
            transformer=TwoWayTransformer(depth=2, embedding_dim=16, mlp_dim=32, num_heads=2),
            transformer_dim=16, iou_head_hidden_dim=16,
        ),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _small_models(monkeypatch):
    """`vit_b` and `vit_l` are small in these tests, and nothing is downloaded."""
    for name, width in (("vit_b", WIDTH), ("vit_l", 2 * WIDTH)):
        monkeypatch.setitem(weights.SAM_MODELS, name, SamModel(width, f"{name}.pth", 1))
        monkeypatch.setitem(sam_model_registry, name, partial(build_small_sam, width))

    def refuse(urls, path, size):
        raise weights.DownloadError(f"{path}: no mirror sent it")

    monkeypatch.setattr(weights, "download_file", refuse)


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(54)  # with most other seeds all masks are of one box, and one remains
    return build_small_sam().eval()


@pytest.fixture(scope="module")
def home(tmp_path_factory, sam):
    """A custom data set of 5 images and 3 classes, a run on it, and weights of a small SAM."""
    folder = tmp_path_factory.mktemp("home")
    ids = [f"image_{number}" for number in range(5)]
    for name, size in zip(ids, [(48, 64), (64, 48), (50, 50), (48, 64), (33, 65)], strict=True):
        save_sample(folder / "data", name, size, num_classes=3)
    write_list(folder / "data", "train", ids)
    write_list(folder / "data", "val", ids[:2])
    (folder / "data" / "class_names.txt").write_text("\n".join(CLASS_NAMES))
    torch.save(sam.state_dict(), folder / "sam.pth")
    save_run(folder / "runs" / "best", 0.5)
    save_run(folder / "runs" / "worse", 0.4)
    return folder


def save_run(folder, miou, class_names=CLASS_NAMES):
    torch.manual_seed(0)
    name = "deeplabv3plus_mobilenet"
    args = {"dataset": "custom", "model": name, "output_stride": 16}
    args["data_root"] = str(folder.parents[1] / "data")
    content = describe_model(build_model(name, num_classes=3), args, class_names)
    save_checkpoint(folder / "best.pth", {**content, "best_score": miou, "cur_itrs": 1})
    write_json(folder / "args.json", {"args": args, "class_names": class_names})
    (folder / "log.jsonl").write_text(json.dumps({"iteration": 1, "miou": miou}))


@pytest.fixture
def infer(run, home, tmp_path):
    """Run the script on the data set above; results go to `tmp_path / "results"`."""

    def run_script(*words, images=(), checkpoint=home / "sam.pth", everything=EVERYTHING):
        places = [] if images else ["--dataset", "custom", "--data_root", home / "data"]
        if not images and "--split" not in words:
            places += ["--report_dir", tmp_path / "report"]
        if "--ckpt" not in words and (not images or "--prompts" in words):
            places += ["--runs_dir", home / "runs"]
        return run(
            sam_infer.main, *images, *places, "--output_dir", tmp_path / "results",
            "--sam_checkpoint", checkpoint, "--device", "cpu", "--precision", "fp32", *everything,
            *words,
        )  # fmt: skip

    return run_script


# The model


def make_maker(sam, side=4, batch=8, precision="fp32"):
    points = {"points_per_side": side, "points_per_batch": batch}
    return MaskMaker(sam, torch.device("cpu"), precision, **points, **ALL_MASKS)


@pytest.fixture(scope="module")
def photo():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (3, 40, 60), generator=generator, dtype=torch.uint8)


def test_masks_are_those_of_the_packages_generator(sam, photo):
    generator = SamAutomaticMaskGenerator(sam, points_per_side=4, **ALL_MASKS)
    records = generator.generate(photo.permute(1, 2, 0).numpy())
    reference = [record for record in records if record["area"]]
    reference.sort(key=lambda record: -record["area"])
    masks = make_maker(sam)(photo)
    assert len(masks) == len(reference) >= 3
    for index, (mask, record) in enumerate(zip(masks, reference, strict=True)):
        np.testing.assert_array_equal(mask.numpy(), record["segmentation"])
        assert masks.predicted_iou[index] == pytest.approx(record["predicted_iou"])
        assert masks.stability[index] == pytest.approx(record["stability_score"])
        assert masks.points[index] == pytest.approx(record["point_coords"][0])
        x0, y0, x1, y1 = masks.boxes[index]
        assert int(mask[y0:y1, x0:x1].sum()) == int(mask.sum())
        assert mask[y0:y1, x0].any() and mask[y0:y1, x1 - 1].any()
        assert mask[y0, x0:x1].any() and mask[y1 - 1, x0:x1].any()


def test_prompts_give_one_mask_each_with_its_class(sam, photo):
    prompts = Prompts(
        boxes=torch.tensor([[2, 3, 20, 30], [25, 5, 50, 35], [1, 1, 58, 9], [2, 3, 20, 30]]),
        points=torch.tensor([[10, 12], [40, 20], [30, 4], [11, 12]]),
        classes=torch.tensor([5, 3, 4, 7]),
    )
    maker = make_maker(sam, batch=3)  # in two batches
    masks = maker(photo, prompts)
    assert sorted(masks.classes.tolist()) == [3, 4, 5, 7]  # also where boxes are the same
    predictor = SamPredictor(sam)
    predictor.set_image(photo.permute(1, 2, 0).numpy())
    for index, mask in enumerate(masks):
        number = prompts.classes.tolist().index(masks.classes[index])
        assert masks.prompt_boxes[index].tolist() == prompts.boxes[number].tolist()
        expected, iou, _ = predictor.predict(
            prompts.points[number : number + 1].numpy(),
            np.ones(1),
            prompts.boxes[number].numpy(),
            multimask_output=False,
        )
        assert (mask.numpy() != expected[0]).mean() < 1e-3
        assert masks.predicted_iou[index] == pytest.approx(iou[0], abs=1e-4)
    assert len(maker(photo, Prompts(*(part[:0] for part in prompts)))) == 0


def test_the_narrowest_image_has_a_pixel_for_the_encoder():
    assert _Resize.get_preprocess_shape(1, 500, 64) == (1, 64)


def test_large_image_takes_fewer_points_at_a_time(sam, photo, monkeypatch):
    monkeypatch.setattr(mask_maker, "MASK_BYTES", 3 * 4 * 40 * 60 * 3 + 1)
    maker, expected = make_maker(sam), make_maker(sam, batch=1)(photo)
    predictor = maker.predictor
    with patch.object(predictor, "predict_torch", wraps=predictor.predict_torch) as asked:
        assert len(maker(photo)) == len(expected)
    assert max(len(call.args[0]) for call in asked.call_args_list) == 3


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_precision_is_that_of_the_image_encoder_alone(photo, precision, dtype):
    sam, found = build_small_sam().eval(), {}
    encoder, decoder = sam.image_encoder.blocks[0].mlp, sam.mask_decoder.iou_prediction_head
    for layer in (encoder.lin1, decoder.layers[0]):
        layer.register_forward_hook(lambda layer, _, output: found.update({layer: output.dtype}))
    make_maker(sam, 2, 4, precision=precision)(photo)
    assert found == {encoder.lin1: dtype, decoder.layers[0]: torch.float32}


@pytest.mark.parametrize("prompts", [None, component_prompts(torch.eye(60).int()[:40])])
def test_points_and_boxes_are_in_fp32_as_a_device_may_lack_float64(photo, prompts):
    maker = make_maker(build_small_sam().eval())
    encoder = maker.predictor.model.prompt_encoder
    with patch.object(encoder, "forward", wraps=encoder.forward) as asked:
        maker(photo, prompts)
    (points, _), boxes = (asked.call_args.kwargs[name] for name in ("points", "boxes"))
    assert points.dtype == torch.float32 and (boxes is None or boxes.dtype == torch.float32)


# Weights


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "optimizer": {}, "epoch": 3},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    ],
    ids=["official", "fine-tuned", "by several processes"],
)
def test_loaded_weights_are_those_of_the_file(tmp_path, sam, wrap):
    torch.save(wrap(sam.state_dict()), tmp_path / "sam.pth")
    loaded = load_sam("vit_b", tmp_path / "sam.pth")
    assert not loaded.training
    for key, value in sam.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vit_b", None, "cannot be read.*--sam_checkpoint"),
        ("vit_l", lambda state: state, "a SAM vit_b, not vit_l: .*--sam_model"),
        ("vit_b", lambda state: {WIDTH_KEY: torch.zeros(1, 4, 4, 5)}, "no weights of a SAM"),
        ("vit_b", lambda state: dict(list(state.items())[:-1]), "does not fit"),
        ("vit_b", lambda state: {"weight": torch.zeros(3)}, "no weights of a SAM"),
    ],
)
def test_bad_weights_are_named(tmp_path, sam, name, change, message):
    path = tmp_path / "weights.pth"
    if change:
        torch.save(change(sam.state_dict()), path)
    with pytest.raises(UserError, match=message) as error:
        load_sam(name, path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_without_a_network_it_says_where_the_weights_may_be_put(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"--sam_checkpoint FILE, or put vit_b\.pth into .*checkp"):
        find_weights("vit_b")


def test_published_sizes_are_those_of_the_package():
    assert list(weights.SAM_MODELS) == ["vit_b", "vit_l", "vit_h"]
    with torch.device("meta"):
        huge = sam_model_registry["vit_h"]()
    assert huge.image_encoder.pos_embed.shape[-1] == weights.SAM_MODELS["vit_h"].width == 1280


# The script


def read_scores(folder):
    return json.loads((folder / "results" / "scores.json").read_text())


def test_five_images_of_the_report_leave_pictures_masks_and_scores(infer, home, tmp_path):
    finished = infer()
    assert finished.status == 0, finished.stderr
    results, scores = tmp_path / "results", read_scores(tmp_path)
    picks = json.loads((tmp_path / "report" / "picks.json").read_text())
    assert scores["images"] == picks["five"]
    assert (scores["dataset"], scores["image_set"]) == ("custom", "train")
    assert scores["checkpoint"] == str(home / "runs" / "best" / "best.pth")
    for part in ("deeplab", "sam_deeplab", "oracle"):
        assert list(scores[part]["class_iou"]) == CLASS_NAMES
        assert 0 <= scores[part]["miou"] <= 1
    assert list(scores["borders"]) == ["3", "5", "10"]
    counts = {}
    for name in picks["five"]:
        size = image_size(home / "data" / "JPEGImages" / f"{name}.jpg")
        masks = load_masks(results / f"{name}.npz")
        assert masks.size == size == image_size(results / f"{name}.png")
        areas = [int(mask.sum()) for mask in masks]
        assert areas == sorted(areas, reverse=True)
        counts[name] = len(masks)
    assert max(counts.values()) > 1
    assert scores["masks"] == counts
    assert scores["masks_per_image"] == np.mean(list(counts.values()))
    assert f"{100 * scores['sam_deeplab']['miou']:.2f}" in finished.stdout


def test_picked_images_are_among_the_five(infer, home, tmp_path):
    assert infer("--limit", 1).status == 0
    picks = tmp_path / "report" / "picks.json"
    before = json.loads(picks.read_text())["classes"]
    masks = (home / "data" / "SegmentationClass").iterdir()
    name_of = {path.stem: CLASS_NAMES[np.unique(Image.open(path))[1]] for path in masks}
    wish = next(sample for sample in name_of if sample not in before.values())
    assert infer("--pick", f"{name_of[wish]}={wish}").status == 0
    assert wish in read_scores(tmp_path)["images"]
    after = json.loads(picks.read_text())["classes"]
    assert after[name_of[wish]] == wish  # visualize.py shows it too


def test_second_run_does_what_is_missing_and_scores_the_same(infer, tmp_path, monkeypatch):
    infer("--split", "val")
    before = read_scores(tmp_path)
    assert before["classes"] is None  # the mIoU of a whole split is of all classes
    (tmp_path / "results" / "image_1.png").unlink()  # as if it had been stopped there
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").glob("image_0.*")}
    finished = infer("--split", "val", "--points_per_batch", 5)  # changes memory and speed alone
    assert "1 of 2 images are done" in finished.stdout
    assert (tmp_path / "results" / "image_1.png").exists()
    assert {path: path.stat().st_mtime_ns for path in times} == times
    after = read_scores(tmp_path)
    assert all(after[key] == before[key] or key == "seconds_per_image" for key in before)
    (tmp_path / "results" / "image_0.npz").write_bytes(b"PK")
    finished = infer("--split", "val")
    assert "making it again" in finished.stdout and "1 of 2 images are done" in finished.stdout
    monkeypatch.setattr(sam_infer, "load_sam", None)  # with everything done there is no need of it
    assert infer("--split", "val").status == 0


def test_masks_of_other_settings_weights_or_images_are_not_mixed_in(infer, home, sam, tmp_path):
    first, other = ("--split", "val", "--limit", 1), tmp_path / "sam.pth"
    infer(*first)
    path = tmp_path / "results" / "image_0.npz"
    before = path.read_bytes()
    error = infer("--split", "val", everything=(*EVERYTHING[:-1], 4)).error
    assert "image_0.npz" in error and "another points_per_side: --overwrite" in error
    shutil.copy(home / "sam.pth", other)  # weights are known by their content, not by their name
    assert "1 of 1 images are done" in infer(*first, checkpoint=other).stdout
    state, key = sam.state_dict(), "mask_decoder.iou_token.weight"
    torch.save({**state, key: state[key] + 1}, other)
    assert "another sam_sha256: --overwrite" in infer(*first, checkpoint=other).error
    image = tmp_path / "image_0.jpg"
    Image.new("RGB", (64, 48)).save(image)
    assert "made with another image_sha256: --overwrite" in infer(images=[image]).error
    assert path.read_bytes() == before
    assert infer("--overwrite", images=[image]).status == 0
    assert path.read_bytes() != before


def test_prompts_from_deeplab_give_masks_with_its_classes(infer, home, tmp_path, monkeypatch):
    def predict(self, images):  # what the small network would say if it were trained
        pred = torch.zeros(1, *images.shape[2:], dtype=torch.uint8)
        pred[:, 5:20, 5:20], pred[:, 30:40, 30:45] = 1, 2
        return pred

    monkeypatch.setattr(sam_infer.Predictor, "__call__", predict)
    finished = infer("--split", "val", "--prompts", "deeplab", everything=EVERYTHING[:4])
    assert finished.status == 0, finished.stderr
    masks = load_masks(tmp_path / "results" / "image_0.npz")
    boxes = dict(zip(map(tuple, masks.prompt_boxes), masks.classes, strict=True))
    assert boxes.items() <= {(5, 5, 19, 19): 1, (30, 30, 44, 39): 2}.items() and boxes
    made_with = masks.settings["made_with"]
    assert made_with["deeplab_sha256"] == file_checksum(home / "runs" / "best" / "best.pth")
    words = ("--split", "val", "--prompts", "deeplab", "--ckpt", home / "runs" / "worse/best.pth")
    assert "made with another deeplab_sha256" in infer(*words, everything=EVERYTHING[:4]).error
    published = sam_infer.load_checkpoint(home / "runs" / "best" / "best.pth")
    published.path = Path("torchvision")  # no file
    monkeypatch.setattr(sam_infer, "load_checkpoint", lambda source: published)
    words = ("--overwrite", "--split", "val", "--prompts", "deeplab", "--ckpt", "torchvision")
    assert infer(*words, everything=EVERYTHING[:4]).status == 0


def test_images_of_your_own_have_masks_but_no_scores(infer, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("L", (1, 1), 9).save(folder / "dot.PNG")
    Image.effect_noise((400, 7), 80).save(folder / "wide.bmp")
    Image.effect_noise((30, 20), 80).convert("RGBA").save(folder / "clear.png")
    finished = infer(images=[folder])
    assert finished.status == 0, finished.stderr
    assert "no scores" in finished.stdout
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert names == {f"{stem}.{end}" for stem in ("dot", "wide", "clear") for end in ("png", "npz")}
    assert load_masks(tmp_path / "results" / "wide.npz").size == (7, 400)


def test_results_in_a_folder_of_images_are_no_images(infer, tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    Image.effect_noise((40, 30), 80).save(folder / "a.png")
    Image.effect_noise((40, 30), 80).save(folder / "b.jpg")
    assert infer(images=[folder]).status == 0
    names = {path.name for path in folder.iterdir()}
    assert names == {"a.png", "b.jpg", "a_2.png", "a_2.npz", "b.png", "b.npz"}
    finished = infer(images=[folder])
    assert finished.status == 0 and "2 of 2 images are done" in finished.stdout
    assert "leaves out 2 x result of an earlier run" in finished.stderr
    assert {path.name for path in folder.iterdir()} == names


def test_images_of_your_own_take_their_prompts_from_the_best_run(infer, home, tmp_path):
    os.utime(home / "runs" / "worse" / "best.pth", (2e9, 2e9))
    Image.effect_noise((40, 30), 80).save(tmp_path / "photo.png")
    words = ("--prompts", "deeplab")
    finished = infer(*words, images=[tmp_path / "photo.png"], everything=EVERYTHING[:4])
    assert finished.status == 0, finished.stderr
    assert str(home / "runs" / "best" / "best.pth") in finished.stdout
    assert "--ckpt FILE takes another" in finished.stdout
    assert load_masks(tmp_path / "results" / "photo.npz").size == (30, 40)


def test_no_mask_found_is_a_result(infer, tmp_path):
    finished = infer("--split", "val", everything=("--points_per_side", 2, "--pred_iou_thresh", 1))
    assert finished.status == 0
    assert "image_0: SAM found no mask" in finished.stdout
    assert len(load_masks(tmp_path / "results" / "image_0.npz")) == 0
    scores = read_scores(tmp_path)
    assert scores["sam_deeplab"] == scores["oracle"] == scores["deeplab"]
    assert scores["masks_per_image"] == 0


def test_without_a_deeplab_the_masks_are_counted_alone(infer, tmp_path):
    finished = infer("--split", "val", "--runs_dir", tmp_path / "none")
    assert finished.status == 0 and "no finished run on custom" in finished.stdout
    scores = read_scores(tmp_path)
    assert scores["checkpoint"] is None and "deeplab" not in scores
    assert scores["masks_per_image"] > 0 and scores["masks_per_region"] > 0
    words = ("--prompts", "deeplab", "--runs_dir", tmp_path / "none")
    assert "--prompts deeplab" in infer(*words, everything=()).error


def test_what_cannot_work_is_refused_before_all_work(infer, home, tmp_path, monkeypatch):
    assert "test.txt" in infer("--split", "test").error
    assert "--device cuda:77" in infer("--device", "cuda:77").error
    assert "none.pth: cannot be read" in infer(checkpoint=tmp_path / "none.pth").error
    save_run(tmp_path / "other", 0.5, ["background", "cat", "dog"])
    error = infer("--split", "val", "--ckpt", tmp_path / "other" / "best.pth").error
    assert "best.pth: --dataset custom has other classes" in error
    shutil.copytree(home / "data", tmp_path / "data")
    for path in (tmp_path / "data" / "SegmentationClass").iterdir():
        Image.new("L", Image.open(path).size).save(path)
    assert "holds an object: give --split" in infer("--data_root", tmp_path / "data").error

    monkeypatch.setitem(sys.modules, "segment_anything", None)
    assert "segment_anything is missing: pip install" in infer("--split", "val").error


def test_each_image_fails_alone_and_is_listed(infer, tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "large", "z"):
        Image.effect_noise((40, 30), 80).save(folder / f"{name}.png")
    Image.effect_noise((60, 30), 80).save(folder / "large.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:300])
    (folder / "empty.png").touch()
    make = MaskMaker.__call__

    def fail(self, image, prompts):
        if image.shape[2] == 60:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")
        return make(self, image, prompts)

    monkeypatch.setattr(MaskMaker, "__call__", fail)
    finished = infer(images=[folder])
    assert "masks of 2 images" in finished.stdout
    cut, empty, large = finished.failed
    assert cut.startswith("cut: ") and "cannot be read" in cut
    assert empty.startswith("empty: ") and "is empty" in empty
    remedy = "take a smaller --sam_model, --points_per_batch or image"
    assert large == f"large: out of memory: {remedy}"
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert names == {"a.png", "a.npz", "z.png", "z.npz"}


def test_scores_are_of_the_images_that_could_be_done(infer, home, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(home / "data", data)
    path = next((data / "JPEGImages").glob("image_0.*"))
    path.write_bytes(path.read_bytes()[:1000])  # its header can be read
    ckpt = home / "runs" / "best" / "best.pth"
    finished = infer("--split", "val", "--data_root", data, "--ckpt", ckpt)
    assert finished.status == 1 and "failed: image_0: " in finished.stderr
    assert "scores on 1 images of custom val" in finished.stdout
    scores = read_scores(tmp_path)
    assert scores["images"] == ["image_1"] and scores["image_set"] == "val"
    # On a handful of images it is the mean over the true classes; a false one counts as 0.
    true = [iou for iou in scores["deeplab"]["class_iou"].values() if iou is not None]
    assert scores["deeplab"]["miou"] == pytest.approx(sum(true) / 2)
    assert scores["classes"] == 2 and "mIoU of 2 true classes" in finished.stdout
