import pytest
import torch

from utils import precision
from utils.common.errors import UserError
from utils.precision import (
    choose_precision,
    describe_precision,
    is_out_of_memory,
    out_of_memory_explained,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("could not create a primitive"),
    ],
)
def test_memory_that_runs_out_is_one_line_with_a_remedy(error):
    with pytest.raises(UserError, match="^out of memory: lower --batch_size$"):
        with out_of_memory_explained("lower --batch_size"):
            raise error


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
        with out_of_memory_explained("lower --batch_size"):
            raise error


@pytest.mark.parametrize("has_it", [True, False])
def test_emulated_bf16_is_said_once(monkeypatch, capsys, has_it):
    monkeypatch.setattr(precision, "_has_bf16", lambda _: has_it)
    precision.say_once.cache_clear()
    for _ in range(2):
        assert choose_precision("bf16", CPU) == "bf16"
    assert choose_precision("auto", CPU) == ("bf16" if has_it else "fp32")
    assert choose_precision("auto", CUDA) == ("bf16" if has_it else "fp16")
    assert capsys.readouterr().err.count("only emulates it") == (not has_it)


def test_fp32_of_a_gpu_is_said_to_be_tf32_in_convolutions(monkeypatch):
    assert "TF32 in convolutions" in describe_precision("fp32", CUDA)
    assert describe_precision("bf16", CUDA) == "bf16 on cuda"
    assert describe_precision("fp32", CPU) == "fp32 on cpu"
    monkeypatch.setattr("torch.backends.cudnn.allow_tf32", False)
    assert describe_precision("fp32", CUDA) == "fp32 on cuda"
