import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from datasets.carrier import PREFETCH, SLOTS, Carrier
from datasets.loader import (
    SizeBatchSampler,
    TrainBatchSampler,
    TrainSamples,
    build_train_loader,
    build_val_loader,
    derive_seed,
)
from datasets.transforms import Compose, RandomHorizontalFlip, RandomScaleCrop
from datasets.voc import VOCSegmentation
from tests.conftest import ROOT, make_voc
from utils.common.errors import UserError


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


def test_weighted_samples_come_as_often_as_their_weights_say():
    weights = torch.tensor([0.0, 1.0, 1.0, 2.0]).double()
    sampler = TrainBatchSampler(4, 4, seed=0, weights=weights)
    drawn = []
    for epoch in range(1000):
        sampler.set_range(epoch)
        drawn += [index for batch in sampler for _, index in batch]
    shares = torch.bincount(torch.tensor(drawn), minlength=4) / len(drawn)
    assert torch.allclose(shares, torch.tensor([0, 0.25, 0.25, 0.5]), atol=0.03)
    assert [list(sampler)] * 2 == [list(sampler), list(sampler)]


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


def test_batches_stay_as_they_were_when_their_slots_are_filled_again(train_set):
    loader = build_train_loader(train_set, 2, seed=0, num_workers=1)
    kept = list(loader)
    assert len(kept) == 5 > SLOTS
    copies = [[part.clone() for part in batch] for batch in kept]
    list(loader)
    assert_equal(kept, copies)
    assert len(loader.collate_fn.slots) == SLOTS == PREFETCH + 1


def test_epochs_that_end_early_do_not_lose_slots(train_set):
    expected = read_epochs(train_set, 0, [0])
    loader = build_train_loader(train_set, 4, 0, num_workers=2)
    for _ in range(SLOTS):
        for _ in loader:  # what was made ahead of it is thrown away
            break
    assert_equal(expected, list(loader))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_have_the_types_and_sizes_of_their_samples(train_set, num_workers):
    # 4 batches for 3 slots: one that held a single image must grow to hold two. Doubles behind
    # 50 x 50 x 3 bytes need aligning.
    dataset = VOCSegmentation(train_set.folder, "val")
    dataset.transform = lambda image, target: (image, target.double())
    sizes = dataset.image_sizes()
    loader = build_val_loader(dataset, sizes, 2, num_workers)
    seen = []
    for images, targets, indices in [*loader, *loader]:
        assert images.dtype == torch.uint8 and targets.dtype == torch.float64
        assert images.is_contiguous(memory_format=torch.channels_last)
        for image, target, index in zip(images, targets, indices.tolist(), strict=True):
            assert torch.equal(image, dataset[index][0])
            assert torch.equal(target, dataset[index][1])
            seen.append(index)
    assert sorted(seen) == sorted(2 * list(range(5)))


def test_a_slot_that_was_filled_again_before_it_was_read_is_noticed(train_set, monkeypatch):
    monkeypatch.setattr("datasets.carrier.get_worker_info", lambda: SimpleNamespace(id=0))
    carrier, samples = Carrier(), TrainSamples(train_set, seed=0)
    parcels = [carrier([samples[0, index]]) for index in range(SLOTS + 1)]
    images, targets, indices = carrier.unpack(parcels[1])
    assert torch.equal(images[0], samples[0, 1][0]) and torch.equal(targets[0], samples[0, 1][1])
    assert indices.tolist() == [1]
    with pytest.raises(AssertionError, match="filled again"):
        carrier.unpack(parcels[0])


def test_cached_samples_make_the_same_batches(train_set):
    cached = VOCSegmentation(train_set.folder, "train", transform=train_set.transform)
    cached.cache_in_ram()
    assert_equal(read_epochs(train_set, 0, [0]), read_epochs(cached, 1, [0]))


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
    ended = subprocess.run(command, cwd=ROOT, timeout=60)
    assert ended.returncode == 0
