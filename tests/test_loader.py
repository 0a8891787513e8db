import subprocess
import sys
from pathlib import Path

import pytest
import torch

from datasets.loader import (
    SizeBatchSampler,
    TrainBatchSampler,
    TrainSamples,
    build_train_loader,
    build_val_loader,
    derive_seed,
)
from datasets.voc import VOCSegmentation
from tests.conftest import make_voc
from utils.errors import UserError
from utils.transforms import Compose, RandomHorizontalFlip, RandomScaleCrop


@pytest.fixture(scope="module")
def train_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_voc(root, num_train=11)
    transform = Compose(RandomScaleCrop((40, 40)), RandomHorizontalFlip())
    return VOCSegmentation(root, "train", transform=transform)


def read_epochs(dataset, num_workers, epochs, seed=0, first=0):
    loader = build_train_loader(dataset, 4, seed, num_workers)
    batches = []
    for epoch in epochs:
        loader.batch_sampler.set_range(epoch, first)
        batches += [tuple(part.clone() for part in batch) for batch in loader]
    return batches


def assert_equal(one, other):
    assert len(one) == len(other) > 0
    for parts in zip(one, other, strict=True):
        for a, b in zip(*parts, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_samples_do_not_depend_on_the_number_of_workers(train_set, num_workers):
    assert_equal(read_epochs(train_set, 0, [0, 1]), read_epochs(train_set, num_workers, [0, 1]))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_samples_do_not_depend_on_what_came_before(train_set, num_workers):
    whole = read_epochs(train_set, 0, [0, 1, 2])
    torch.rand(3)  # the global generator has moved on
    assert_equal(whole[4:], read_epochs(train_set, num_workers, [2]))
    assert_equal(whole[5:], read_epochs(train_set, num_workers, [2], first=1))


def test_epochs_and_seeds_differ(train_set):
    first, second, third, fourth = read_epochs(train_set, 0, [0, 1])
    assert not torch.equal(first[2], third[2]) or not torch.equal(second[2], fourth[2])
    other = read_epochs(train_set, 0, [0], seed=1)
    assert not torch.equal(first[0], other[0][0])


def test_samples_leave_the_global_generator_alone(train_set):
    samples = TrainSamples(train_set, seed=0)
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    samples[0, 3]
    list(read_epochs(train_set, 0, [0]))
    assert torch.equal(torch.rand(4), expected)


def test_same_sample_of_another_epoch_looks_different(train_set):
    samples = TrainSamples(train_set, seed=0)
    assert torch.equal(samples[0, 3][0], samples[0, 3][0])
    assert not torch.equal(samples[0, 3][0], samples[1, 3][0])


def test_an_epoch_sees_each_sample_once_and_drops_the_rest():
    sampler = TrainBatchSampler(11, batch_size=4, seed=0)
    batches = list(sampler)
    assert len(sampler) == len(batches) == 2
    keys = [key for batch in batches for key in batch]
    assert len(set(keys)) == 8 and all(epoch == 0 for epoch, _ in keys)


def test_processes_share_the_batch_that_one_process_would_see():
    whole = list(TrainBatchSampler(20, batch_size=6, seed=3))
    parts = [list(TrainBatchSampler(20, 6, 3, rank, world_size=3)) for rank in range(3)]
    for index, batch in enumerate(whole):
        assert sorted(batch) == sorted(key for part in parts for key in part[index])
        assert all(len(part[index]) == 2 for part in parts)


def test_set_range_ends_an_epoch_early():
    sampler = TrainBatchSampler(40, batch_size=4, seed=0)
    whole = list(sampler)
    sampler.set_range(0, first=2, last=5)
    assert list(sampler) == whole[2:5] and len(sampler) == 3


def test_evaluation_batches_hold_one_size_and_every_sample_once():
    sizes = [(4, 6), (6, 4), (4, 6), (4, 6), (5, 5), (4, 6)]
    sampler = SizeBatchSampler(sizes, batch_size=3)
    assert sorted(index for batch in sampler for index in batch) == list(range(6))
    assert all(len({sizes[index] for index in batch}) == 1 for batch in sampler)
    assert len(sampler) == 4  # 3 + 1 of (4, 6), and two singles
    parts = [list(SizeBatchSampler(sizes, 3, rank, world_size=2)) for rank in range(2)]
    assert sorted(map(tuple, parts[0] + parts[1])) == sorted(map(tuple, sampler))


def test_val_batches_are_stacked_images_of_native_size(train_set):
    dataset = VOCSegmentation(train_set.folder, "val")
    loader = build_val_loader(dataset, dataset.image_sizes(), batch_size=2, num_workers=0)
    shapes = sorted(tuple(images.shape) for images, _, _ in loader)
    assert shapes == [(1, 3, 48, 64), (1, 3, 50, 50), (1, 3, 64, 48), (2, 3, 48, 64)]


def test_derive_seed_mixes_its_numbers():
    seeds = {derive_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(seeds) == 125


@pytest.mark.parametrize(
    ("batch_size", "world_size", "message"),
    [(1, 1, "at least 2"), (3, 2, "at least 2"), (5, 2, "not a multiple"), (12, 1, "only 11")],
)
def test_impossible_batch_sizes_name_the_flag(train_set, batch_size, world_size, message):
    with pytest.raises(UserError, match=rf"--batch_size {batch_size}: .*{message}"):
        build_train_loader(train_set, batch_size, 0, 0, world_size=world_size)


def test_live_workers_do_not_keep_the_interpreter_from_ending(train_set):
    code = (
        "import builtins, sys\n"
        "from datasets.loader import build_train_loader\n"
        "from datasets.voc import VOCSegmentation\n"
        "crop = lambda image, target: (image[:, :40, :40], target[:40, :40])\n"
        "data = VOCSegmentation(sys.argv[1], transform=crop)\n"
        "loader = build_train_loader(data, 2, seed=0, num_workers=1)\n"
        "builtins.kept = batches = iter(loader)\n"
        "next(batches)\n"
    )
    command = [sys.executable, "-c", code, str(train_set.folder)]
    ended = subprocess.run(command, cwd=Path(__file__).parents[1], timeout=60)
    assert ended.returncode == 0
