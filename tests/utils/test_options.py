"""The flags of every script: one parse, one merge, one table of ranges."""

import argparse
import json
import re
from functools import partial

import pytest

import main
import predict
import sam_infer
import utils.benchmark.__main__ as benchmark
import utils.export.__main__ as export
import visualize
from utils.common.errors import UserError
from utils.common.flags import Number
from utils.options import (
    DATASET_DEFAULTS,
    IRRELEVANT_SETTINGS,
    build_parser,
    parse_args,
    settings_to_store,
)
from utils.predict import options as predict_options
from utils.report import options as report_options
from utils.report.runs import UNCOMPARED
from utils.sam import options as sam_options

# Name: parser, what parses and checks a command line, and the real script.
SCRIPTS = {
    "main.py": (build_parser(""), partial(parse_args, ""), main.main),
    "predict.py": (
        predict_options.build_parser(""),
        lambda argv: predict_options.parse_args("", argv, {}),
        predict.main,
    ),
    "sam_infer.py": (
        sam_options.build_parser(""), partial(sam_options.parse_args, ""), sam_infer.main
    ),
    "utils.benchmark": (benchmark.build_parser(), benchmark.parse_args, benchmark.main),
    "utils.export": (export.build_parser(), export.build_parser().parse_args, export.main),
    **{
        f"visualize.py {name}": (parser, partial(report_options.parse_args, ""), visualize.main)
        for name, parser in report_options.build_parsers("")[1].items()
    },
}  # fmt: skip


def words_for(script, flag):
    """What must stand beside a flag for it to have a use."""
    words = script.split()[1:]
    if script == "predict.py":
        is_score = flag in predict_options.SCORE_FLAGS
        words += ["--split", "val", "--crop_val"] if is_score else ["photo.jpg"]
    if script == "utils.export":
        words += ["--ckpt", "best.pth", "--output", "model.onnx"]
    needs = SCRIPTS[script][0].needs
    return words + ([f"--{needs[flag][0]}", needs[flag][1]] if flag in needs else [])


# Numbers


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_number_has_bounds_and_keeps_to_them_in_one_line(run, script):
    parser, _, main = SCRIPTS[script]
    for action in parser._actions:
        if action.choices or action.type is None:
            continue
        assert isinstance(action.type, Number), action.dest
        flag = action.option_strings[-1]
        for word in ("-1", "nan", "inf", "1e30" if action.type.kind is int else "-1e30"):
            ended = run(main, *words_for(script, action.dest), flag, word)
            assert ended.error.startswith(f"error: {flag}: "), word


@pytest.mark.parametrize(
    ("script", "flag", "taken", "not_taken"),
    [
        ("main.py", "--lr", "1e-9 1e30", "0 inf nan much"),
        ("main.py", "--seed", f"0 {2**63 - 1}", f"{2**63} -1 1.5"),
        ("main.py", "--batch_size", "2 64", "0 1 1000000000"),
        ("main.py", "--crop_size", "1 2048", "0 1000000000"),
        ("main.py", "--momentum", "0 0.99", "1"),
        ("main.py", "--ema_decay", "0 0.9999", "1"),
        ("main.py", "--resize", "0.5 16", "0 17"),
        ("main.py", "--val_fraction", "0.1", "0 1"),
        ("predict.py", "--scales", "0.5", "0 1e30"),
        ("predict.py", "--window", "513", "31 1000000000"),
    ],
)
def test_bounds_are_these(script, flag, taken, not_taken):
    number = SCRIPTS[script][0]._option_string_actions[flag].type
    for word in taken.split():
        assert number(word) == number.kind(word)
    bounds = re.escape(f"from {number.least:g} to {number.most:g}")
    for word in not_taken.split():
        message = f"^must be a( whole)? number {bounds}, not {word}$"
        with pytest.raises(argparse.ArgumentTypeError, match=message):
            number(word)


# Help, and one line for what is wrong


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_has_a_help_text_with_its_default(script):
    parser = SCRIPTS[script][0]
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        assert action.help, action.dest
        if action.default not in (None, [], argparse.SUPPRESS):
            assert f"(default: {action.default})" in text, action.dest


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model", "resnet"], "--model: invalid choice: 'resnet'"),
        (["--crop_size"], "--crop_size: expected at least one argument"),
        (["--data_root", ""], "--data_root: is empty"),
    ],
)
def test_what_argparse_refuses_is_one_line(run, argv, words):
    assert run(main.main, *argv).error.startswith(f"error: {words}")


# One merge: defaults, data set, stored, recipe, explicit


@pytest.fixture
def store(tmp_path):
    """Write the args.json of a run with these flags; its path."""

    def write(*flags, folder="other", **changes):
        settings = {**settings_to_store(parse_args("", list(flags))), **changes}
        path = tmp_path / folder / "args.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"args": settings}))
        return path

    return write


def given(path, *flags):
    """The settings of `--args FILE` and more flags."""
    return parse_args("", ["--args", str(path), *flags])


# What a run stored (None: there is none), the flags beside it, and what applies.
COURSE = {
    "model": "deeplabv3plus_resnet50", "dataset": "voc", "image_set": "train",
    "backbone_weights": "imagenet1k_v1", "output_stride": 16, "crop_size": [513],
    "loss": "ce", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4,
    "backbone_lr_factor": 0.1, "lr_policy": "step", "step_size": 1000, "total_itrs": 5000,
    "batch_size": 8, "bn_momentum": 0.01, "val_interval": 1, "crop_val": False,
    "precision": "auto", "focal_gamma": None, "run_name": "voc_deeplabv3plus_resnet50_ce",
}  # fmt: skip
SHAPES = DATASET_DEFAULTS["shapes"]
SCRATCH = {"backbone_lr_factor": 1, "bn_momentum": 0.1}
STRONG = {"loss": "ce_lovasz", "lr_policy": "poly", "lr": 0.05}
LAYERS = [
    (None, "", COURSE),
    (None, "--backbone_weights none", SCRATCH),
    (None, "--dataset shapes", {**SHAPES, **SCRATCH}),
    (None, "--dataset shapes --lr 0.5 --bn_momentum 0.01",
     {**SHAPES, **SCRATCH, "lr": 0.5, "bn_momentum": 0.01}),
    (None, "--recipe strong", {**STRONG, "backbone_lr_factor": 0.5, "bn_momentum": 0.01}),
    (None, "--recipe strong --loss focal --lr 0.02",
     {**STRONG, "backbone_lr_factor": 0.5, "loss": "focal", "lr": 0.02}),
    (None, "--recipe strong --backbone_weights none", {**STRONG, **SCRATCH}),
    (None, "--recipe strong --dataset shapes", {**SHAPES, **STRONG, **SCRATCH}),
    ("--dataset shapes --lr 0.02", "", {**SHAPES, **SCRATCH, "dataset": "shapes", "lr": 0.02}),
    ("--lr 0.02", "--lr 0.3", {"lr": 0.3}),
    # A recipe that is named decides on what any recipe decides on, and on nothing else.
    ("--total_itrs 77 --loss dice --lr 0.02 --momentum 0.8", "--recipe strong",
     {**STRONG, "backbone_lr_factor": 0.5, "recipe": "strong", "total_itrs": 77, "momentum": 0.8}),
    ("--loss dice", "--recipe strong --loss focal", {**STRONG, "loss": "focal"}),
    ("--recipe strong", "", {**STRONG, "recipe": "strong"}),
    ("--recipe strong", "--recipe course", {**COURSE, "recipe": "course"}),
    ("--recipe strong --dataset shapes", "--recipe course", {**SHAPES, **SCRATCH, "loss": "ce"}),
    ("--backbone_weights none --bn_momentum 0.05", "--recipe strong",
     {**STRONG, **SCRATCH, "bn_momentum": 0.05}),
    # The gamma that applies is recorded, and is in no other loss's way.
    (None, "--loss focal", {"focal_gamma": 2.0}),
    (None, "--loss focal --focal_gamma 0", {"focal_gamma": 0.0}),
    ("--loss focal --focal_gamma 3", "", {"focal_gamma": 3.0}),
    ("--loss focal --focal_gamma 3", "--loss ce", {"focal_gamma": None}),
    # A run is named after what it does, unless it was given a name.
    ("", "--recipe strong", {"run_name": "voc_deeplabv3plus_resnet50_ce_lovasz"}),
    ("--run_name mine", "--loss dice", {"run_name": "mine"}),
    (None, "--dataset cityscapes", {"crop_size": [769], "lr_policy": "poly"}),
    (None, "--dataset custom --data_root a/town", {"run_name": "town_deeplabv3plus_resnet50_ce"}),
]  # fmt: skip


@pytest.mark.parametrize(("stored", "flags", "expected"), LAYERS)
def test_each_layer_of_settings_wins_over_those_before(store, stored, flags, expected):
    words = flags.split()
    args = parse_args("", words) if stored is None else given(store(*stored.split()), *words)
    assert {key: vars(args)[key] for key in expected} == expected


def test_ckpt_beside_stored_settings_brings_its_own_backbone(store, tmp_path, monkeypatch):
    path = store("--total_itrs", "77")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--ckpt weights\.pth: no such file"):
        given(path, "--ckpt", "weights.pth")
    (tmp_path / "weights.pth").touch()
    args = given(path, "--ckpt", "weights.pth")
    assert (args.ckpt, args.backbone_weights, args.total_itrs) == ("weights.pth", "none", 77)
    assert (args.bn_momentum, args.backbone_lr_factor) == (0.01, 0.1)
    with pytest.raises(UserError, match=r"--backbone_weights: --ckpt weights\.pth brings its own"):
        given(path, "--ckpt", "weights.pth", "--backbone_weights", "imagenet1k_v2")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": "fast"}, "--lr: must be a number from .* not fast"),
        ({"total_itrs": 5.5}, "--total_itrs: must be a whole number from .* not 5.5"),
        ({"crop_size": []}, "--crop_size: expected at least one argument"),
        ({"recipe": "weak"}, "--recipe: invalid choice: 'weak'"),
        ({"crop_val": "no"}, "--crop_val: ignored explicit argument 'no'"),
        ({"data_root": ""}, "--data_root: is empty"),
    ],
)
def test_stored_settings_that_no_flag_can_have_are_refused_with_their_file(store, changes, words):
    with pytest.raises(UserError, match=rf"^.*args\.json: {words}"):
        given(store(**changes))


def test_stored_settings_that_are_unknown_or_empty_are_those_of_the_defaults(store, capsys):
    path = store(lr=None, colour="red", sampling=True, cache="none", old=False, share=0.0)
    args = given(path)
    assert args.lr == 0.01 and not hasattr(args, "colour")
    said = f"{path}: left out, no flags any more: colour red, sampling True\n"
    assert capsys.readouterr().err == said  # and nothing of what was off


# Nothing is silently ignored


USELESS = {
    "main.py": [
        (["--loss", "ce", "--focal_gamma", "3"], "--focal_gamma: .* --loss focal"),
        (["--loss", "dice", "--class_weights", "median_frequency"], "dice .*--class_weights"),
        (["--lr_policy", "poly", "--step_size", "9"], "--step_size: .* --lr_policy step"),
        (["--recipe", "strong", "--step_size", "9"], "--step_size: .* --lr_policy step"),
        (["--dataset", "shapes", "--voc_archive", "a.tar"], "--voc_archive: .* --dataset voc"),
        (["--dataset", "custom", "--no_download"], "--no_download: .* --dataset voc"),
        (["--val_fraction", "0.3"], "--val_fraction: .* --dataset custom"),
        (["--crop_size", "40", "48", "--crop_val"], "--crop_size 40 48: give the side"),
        (["--crop_size", "40", "48", "9"], "--crop_size 40 48 9: give the side"),
        (["--ckpt", "a.pth", "--backbone_weights", "imagenet1k_v1"], "--backbone_weights: --ckpt"),
        (["--resume", "--overwrite"], "--overwrite: .* --resume"),
        (["--resume", "--args", "a.json"], "--args: .* --resume"),
        (["--test_only", "--resume"], "--test_only: .* --resume"),
        (["--test_only", "--overwrite"], "--overwrite: .* --test_only"),
        (["--args", "nowhere.json"], r"nowhere\.json: cannot be read"),
    ],
    "predict.py": [
        ([], "--split"),
        (["a.jpg", "--split", "val"], "--split"),
        (["a.jpg", "--split_seed", "0"], "--split_seed"),
        (["--split", "val", "--max_pixels", "9"], "--max_pixels"),
        (["--split", "val", "--crop_size", "9"], "--crop_size"),
        (["--split", "val", "--crop_val", "--crop_size", "9", "8"], "--crop_val"),
        (["--split", "val", "--val_fraction", "0.5"], "--val_fraction: .* --dataset custom"),
        (["a.jpg", "--runs_dir", "x", "--ckpt", "y"], "--runs_dir"),
    ],
    "sam_infer.py": [
        (["--prompts", "deeplab", "--points_per_side", "9"], "--points_per_side: .*--prompts grid"),
        (["a.jpg", "--split", "val"], "--split"),
        (["a.jpg", "--dataset", "voc"], "--dataset"),
        (["a.jpg", "--ckpt", "best.pth"], "--ckpt: .*--prompts deeplab"),
        (["--split", "val", "--report_dir", "x"], "--report_dir"),
        (["--ckpt", "x", "--runs_dir", "y"], "--runs_dir"),
    ],
    "visualize.py report": [
        (["classes", "--x", "epochs"], "--x epochs"),
        (["curves", "--author", "A"], "--author A"),
        (["nothing"], "nothing"),
    ],
}


@pytest.mark.parametrize(
    ("script", "argv", "words"), [(name, *case) for name in USELESS for case in USELESS[name]]
)
def test_flags_that_do_nothing_or_do_not_go_together_are_named(script, argv, words):
    with pytest.raises(UserError, match=words):
        SCRIPTS[script][1](argv)


# Runs to go on with


@pytest.fixture
def resume(tmp_path, store):
    """Parse `--resume` with more flags, for a run that was started with some."""

    def parse(started, *flags):
        store(*started, folder="runs/mine")
        where = ["--runs_dir", str(tmp_path / "runs"), "--run_name", "mine"]
        return parse_args("", ["--resume", *where, *flags])

    return parse


def test_a_resume_goes_on_with_the_stored_settings(resume, tmp_path):
    args = resume(["--lr", "0.02", "--recipe", "strong", "--loss", "dice"])
    assert (args.lr, args.loss, args.lr_policy) == (0.02, "dice", "poly")
    # Though it was started elsewhere.
    assert (args.runs_dir, args.run_name) == (str(tmp_path / "runs"), "mine")
    args = resume(["--recipe", "strong", "--loss", "dice"], "--recipe", "strong", "--lr", "0.05")
    assert (args.loss, args.lr) == ("dice", 0.05)  # it may name the run's own settings


@pytest.mark.parametrize(
    ("started", "flags", "words"),
    [
        ("--lr 0.02", "--lr 0.5", r"--lr 0\.5: the run was started with 0\.02"),
        ("", "--recipe strong", "--recipe strong: the run was started with course"),
        ("", "--ckpt x.pth", r"--ckpt x\.pth: the run was started with None"),
        ("", "--crop_size 96 48", "--crop_size 96 48: the run was started with 513"),
        ("", "--seed 1", "--seed 1: the run was started with 0"),
        ("--lr_policy poly", "--total_itrs 9000", "--total_itrs 9000: the run was started with 5"),
    ],
)
def test_a_resume_refuses_to_compute_something_else(resume, started, flags, words):
    with pytest.raises(UserError, match=words):
        resume(started.split(), *flags.split())


def test_a_resume_may_change_what_does_not_matter_and_be_longer_with_steps(resume):
    flags = [
        "--data_root", "x", "--num_workers", "3", "--device", "cpu", "--val_batch_size", "1",
        "--save_interval", "5", "--compile", "--tensorboard", "--no_download", "--voc_archive",
        "a.tar",
    ]  # fmt: skip
    args = resume([], *flags, "--total_itrs", "9000")
    assert (args.data_root, args.num_workers, args.compile) == ("x", 3, True)
    assert args.total_itrs == 9000  # the rates before do not feel it
    changed = {flag.removeprefix("--") for flag in flags if flag.startswith("--")}
    assert changed | {"runs_dir", "run_name"} == IRRELEVANT_SETTINGS
    assert UNCOMPARED == IRRELEVANT_SETTINGS | {"seed", "cache"}


def test_a_run_to_resume_is_found_under_the_name_that_its_flags_gave(store, tmp_path):
    words = ["--recipe", "strong", "--dataset", "cityscapes"]
    name = "cityscapes_deeplabv3plus_resnet50_ce_lovasz"
    store(*words, folder=f"runs/{name}")
    args = parse_args("", ["--resume", "--runs_dir", str(tmp_path / "runs"), *words])
    assert (args.loss, args.run_name) == ("ce_lovasz", name)
    with pytest.raises(UserError, match="--resume: .*_ce holds no run"):
        parse_args("", ["--resume", "--runs_dir", str(tmp_path / "runs")])


# Runs to evaluate


@pytest.fixture
def evaluate(tmp_path, store):
    """Parse `--test_only` with more flags, for a run that was started with some."""

    def parse(started, *flags):
        path = store(*started, folder="runs/mine")
        (path.parent / "best.pth").touch()
        return parse_args("", ["--test_only", "--ckpt", str(path.parent / "best.pth"), *flags])

    return parse


def test_an_evaluation_takes_the_settings_of_the_run(evaluate):
    args = evaluate(["--dataset", "shapes", "--output_stride", "8"], "--crop_val")
    settings = (args.dataset, args.output_stride, args.crop_size)
    assert settings == ("shapes", 8, SHAPES["crop_size"])


@pytest.mark.parametrize(
    "flag", ["--lr 0.5", "--model deeplabv3_resnet50", "--crop_size 96", "--seed 3"]
)
def test_an_evaluation_takes_flags_of_the_training_where_they_are_the_runs(evaluate, flag):
    assert evaluate(flag.split(), *flag.split()).test_only
    with pytest.raises(UserError, match=f"{flag}: does nothing with --test_only"):
        evaluate([], *flag.split())


def test_a_run_that_began_from_a_checkpoint_is_evaluated_at_its_end(store, tmp_path):
    store(ckpt="start.pth", folder="runs/mine")
    where = ["--runs_dir", str(tmp_path / "runs"), "--run_name", "mine"]
    args = parse_args("", ["--test_only", *where])
    assert (args.ckpt, args.runs_dir, args.run_name) == (None, str(tmp_path / "runs"), "mine")


def test_a_checkpoint_from_elsewhere_says_its_output_stride_itself(tmp_path):
    path = tmp_path / "foreign.pth"
    path.touch()
    assert parse_args("", ["--test_only", "--ckpt", str(path)]).output_stride is None
    with pytest.raises(UserError, match=r"nowhere\.pth: no such file"):
        parse_args("", ["--test_only", "--ckpt", "nowhere.pth"])
    with pytest.raises(UserError, match="--test_only: .* holds no run"):
        parse_args("", ["--test_only", "--runs_dir", str(tmp_path)])


# predict.py


def test_the_checkpoints_run_says_how_it_is_scored():
    stored = {"dataset": "custom", "data_root": "town", "crop_size": [96], "lr": 3, "seed": None}
    masks = {"void_value": 0, "object_value": 7, "voc_archive": "a.tar", "no_download": True}
    args = predict_options.parse_args("", ["--split", "val"], {**stored, **masks})
    assert (args.void_value, args.object_value, args.voc_archive) == (0, 7, None)
    assert (args.dataset, args.data_root, args.crop_size) == ("custom", "town", [96])
    words = ["--split", "val", "--crop_val", "--data_root", "x", "--val_fraction", "0.5"]
    args = predict_options.parse_args("", words, stored)
    assert (args.data_root, args.val_fraction, args.crop_size) == ("x", 0.5, [96])
    args = predict_options.parse_args("", ["--split", "val", "--dataset", "voc"], stored)
    assert (args.data_root, args.crop_size) == ("data", [96])


def test_before_the_checkpoint_is_known_its_data_set_is_not_guessed():
    words = ["--split", "val", "--val_fraction", "0.5"]
    assert predict_options.parse_args("", words).val_fraction == 0.5
    stored = {"crop_size": "large"}
    with pytest.raises(UserError, match="the checkpoint's settings: --crop_size: must be a"):
        predict_options.parse_args("", words, stored)
