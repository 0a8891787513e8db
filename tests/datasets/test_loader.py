import gc
import re
import signal
from multiprocessing import active_children

import numpy as np
import pytest
import torch

from datasets.loader import (
    TrainBatches,
    WorkerError,
    build_loader,
    check_batch_size,
    derive_seed,
    size_batches,
    worker_faults_explained,
)
from datasets.transforms import train_transform
from datasets.voc import VOCSegmentation
from tests.conftest import as_process, make_voc
from utils.common.errors import UserError


@pytest.fixture(scope="module")
def train_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_voc(root, num_train=11)
    return VOCSegmentation(root, "train", transform=train_transform((40, 40)))


def read(dataset, first, last, num_workers=0, seed=0):
    """The batches of iterations `first` to `last`; an epoch of 11 samples has 2 of size 4."""
    batches = TrainBatches(len(dataset), 4, first, last, seed)
    return list(build_loader(dataset, batches, num_workers))


def assert_equal(one, other):
    assert len(one) == len(other) > 0
    for parts in zip(one, other, strict=True):
        for a, b in zip(*parts, strict=True):
            assert torch.equal(a, b)


def old_formula(dataset, iteration, seed, batch_size=4):
    """What an iteration sees, written down without the loader's code."""

    def mix(*numbers):
        return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])

    epoch, position = divmod(iteration, len(dataset) // batch_size)
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    order = torch.randperm(len(dataset), generator=generator)
    samples = []
    for index in order[position * batch_size : (position + 1) * batch_size].tolist():
        torch.manual_seed(mix(seed, epoch, index))
        samples.append((*dataset[index], torch.tensor(index)))
    return [torch.stack(column) for column in zip(*samples, strict=True)]


@pytest.mark.parametrize(("first", "num_workers"), [(0, 0), (0, 1), (0, 3), (5, 0), (5, 2)])
def test_an_iteration_sees_what_seed_epoch_and_index_say(train_set, first, num_workers):
    """Whatever came before: also from the middle of an epoch."""
    expected = [old_formula(train_set, iteration, seed=3) for iteration in range(first, 7)]
    assert_equal(expected, read(train_set, first, 7, num_workers, seed=3))


def test_samples_leave_the_global_generator_alone(train_set):
    state = torch.get_rng_state()
    read(train_set, 0, 2)
    assert torch.equal(torch.get_rng_state(), state)


def of_each_process(build, world_size):
    for rank in range(world_size):
        with as_process(rank, world_size):
            yield list(build())


def test_processes_share_the_batch_that_one_process_would_see():
    batches = TrainBatches(20, 6, 0, 5, seed=3)
    assert len(batches) == 5
    whole, parts = list(batches), list(of_each_process(lambda: batches, world_size=3))
    for index, batch in enumerate(whole):
        assert sorted(batch) == sorted(key for part in parts for key in part[index])
        assert all(len(part[index]) == 2 for part in parts)


def test_evaluation_batches_hold_one_size_and_every_sample_once():
    sizes = [(4, 6), (6, 4), (4, 6), (4, 6), (5, 5), (4, 6)]
    batches = size_batches(sizes, batch_size=3)
    assert sorted(index for batch in batches for _, index in batch) == list(range(6))
    assert all(len({sizes[index] for _, index in batch}) == 1 for batch in batches)
    assert len(batches) == 4  # 3 + 1 of (4, 6), and two singles
    parts = of_each_process(lambda: size_batches(sizes, 3), world_size=2)
    assert sorted(sum(parts, [])) == sorted(batches)


def test_derive_seed_mixes_its_numbers():
    seeds = {derive_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(seeds) == 125


@pytest.mark.parametrize(
    ("batch_size", "world_size", "message"),
    [
        (1, 1, "at least 2"),
        (3, 2, "at least 2"),
        (5, 2, "a multiple of the processes"),
        (12, 1, "only 11"),
    ],
)
def test_impossible_batch_sizes_name_the_flag(train_set, batch_size, world_size, message):
    with (
        as_process(0, world_size),
        pytest.raises(UserError, match=rf"--batch_size {batch_size}: .*{message}"),
    ):
        check_batch_size(train_set, batch_size)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_have_the_types_sizes_and_layout_of_their_samples(train_set, num_workers):
    dataset = VOCSegmentation(train_set.folder, "val")
    dataset.transform = lambda image, target: (image, target.double())
    loader = build_loader(dataset, size_batches(dataset.image_sizes(), 2), num_workers)
    seen = []
    for images, targets, indices in [*loader, *loader]:
        assert images.dtype == torch.uint8 and targets.dtype == torch.float64
        assert images.is_contiguous(memory_format=torch.channels_last)
        for image, target, index in zip(images, targets, indices.tolist(), strict=True):
            assert torch.equal(image, dataset[index][0])
            assert torch.equal(target, dataset[index][1])
            seen.append(index)
    assert sorted(seen) == sorted(2 * list(range(5)))


KILLED = "DataLoader worker (pid 7) is killed by signal: Killed. "


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError(KILLED), "worker (pid 7) is killed"),
        (RuntimeError("unable to open shared memory object </torch_7_1>: No"), "shared memory"),
        (OSError(28, "No space left on device"), "No space left"),
        (EOFError(), "EOFError"),
    ],
)
def test_what_torch_says_of_its_workers_is_understood(error, said):
    message = rf"^a data worker was killed, or /dev/shm.*{re.escape(said)}.*--num_workers"
    with pytest.raises(WorkerError, match=message), worker_faults_explained():
        raise error


def test_other_errors_are_no_workers():
    with pytest.raises(BrokenPipeError), worker_faults_explained():
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's handler
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signals there")
def test_worker_that_is_killed_is_said_in_one_line(train_set):
    batches = TrainBatches(len(train_set), 4, 0, 1000)
    with pytest.raises(UserError, match=r"^a data worker was killed"), worker_faults_explained():
        for _ in build_loader(train_set, batches, num_workers=1):
            for worker in active_children():
                worker.kill()
    gc.collect()  # while the dead one is known, torch raises whenever another process ends
