import pytest
import torch

from utils import precision
from utils.common.errors import UserError
from utils.precision import choose_precision, is_out_of_memory, out_of_memory_explained


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "cuda:0"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."), "cuda:0"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`"), "cuda:0"),
        (MemoryError(), "cpu"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "cpu"),
        (RuntimeError("could not create a primitive"), "cpu"),
    ],
)
def test_whose_memory_ran_out_is_said(error, where):
    assert is_out_of_memory(error)
    with pytest.raises(UserError) as raised:
        with out_of_memory_explained(torch.device("cuda:0"), "lower --batch_size"):
            raise error
    assert str(raised.value) == f"out of memory ({where}): lower --batch_size"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        ValueError("CUDA error: out of memory"),
    ],
)
def test_other_errors_are_left_alone(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error), match=str(error)):
        with out_of_memory_explained(torch.device("cpu"), "lower --batch_size"):
            raise error


def test_a_full_gpu_is_not_one_without_the_precision(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "ones", fail)
    with pytest.raises(RuntimeError, match="CUDA error: out of memory"):
        choose_precision("fp32", torch.device("cuda"))


@pytest.mark.parametrize("has_it", [True, False])
def test_emulated_bf16_is_said_once(monkeypatch, capsys, has_it):
    monkeypatch.setattr(precision, "_has_bf16", lambda _: has_it)
    precision.say_once.cache_clear()
    for _ in range(2):
        assert choose_precision("bf16", torch.device("cpu")) == "bf16"
    assert choose_precision("auto", torch.device("cpu")) == ("bf16" if has_it else "fp32")
    said = capsys.readouterr().err
    assert said.count("only emulates it") == (not has_it)
