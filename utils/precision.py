"""Which floating-point type the convolutions run in."""

import contextlib
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F

from utils.common.errors import UserError
from utils.common.progress import say_once

PRECISIONS = ("auto", "bf16", "fp16", "fp32")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
GPU_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
HOST_FULL = ("DefaultCPUAllocator", "bad_alloc", "could not create a primitive")


def choose_device(name: str = "auto") -> torch.device:
    """The device that `--device` names; `auto` takes CUDA, then Apple's GPU, then the CPU.

    Raises:
        UserError: this machine, or this build of torch, has no such device.
    """
    if name != "auto":
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:
            reason = textwrap.shorten(str(error), 100, placeholder=" ...")
            raise UserError(f"--device {name}: not to be had here ({reason})") from None
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_precision(name: str, device: torch.device) -> str:
    """Resolve `auto`: bf16 where the hardware has it, fp16 on older CUDA GPUs, else fp32.

    Raises:
        UserError: there is no such type, or the device cannot compute in it.
    """
    if name != "auto":
        try:
            with autocast(name, device):
                one = torch.ones(1, 1, 1, 1, device=device)
                F.conv2d(one, one)
        except RuntimeError as error:
            if device.type == "cuda" and is_out_of_memory(error):
                raise
            reason = textwrap.shorten(str(error), 100, placeholder=" ...")
            raise UserError(f"--precision {name}: {device} does not have it ({reason})") from None
        if name == "bf16" and not _has_bf16(device.type):
            say_once(f"--precision bf16: {device} only emulates it, far slower than fp32")
        return name
    if _has_bf16(device.type):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context for forward passes in `precision` ("bf16", "fp16" or "fp32")."""
    dtype = dtype_of(precision)
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def dtype_of(precision: str) -> torch.dtype:
    """The type of the convolutions in "bf16", "fp16" or "fp32".

    Raises:
        UserError: it is none of these.
    """
    if precision not in DTYPES:
        raise UserError(f"--precision {precision}: unknown: choose from {', '.join(PRECISIONS)}")
    return DTYPES[precision]


def describe_precision(precision: str, device: torch.device) -> str:
    """Precision and device as people read them: torch's fp32 is not all fp32 on NVIDIA's GPUs."""
    uses_tf32 = device.type == "cuda" and torch.backends.cudnn.allow_tf32 and not torch.version.hip
    tf32 = " (TF32 in convolutions, where the GPU has it)"
    return f"{precision}{tf32 if precision == 'fp32' and uses_tf32 else ''} on {device}"


def build_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """What keeps small gradients in fp16 from vanishing; in other precisions it does nothing."""
    # It skips a step that overflows, the first one too: the schedule counts iterations.
    warnings.filterwarnings("ignore", message=r"Detected call of .lr_scheduler\.step")
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def _has_bf16(device_type: str) -> bool:
    """Whether the hardware multiplies bf16 itself (CPUs with AVX-512 BF16 or AMX)."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device_type == "cpu" and any(
        getattr(torch.cpu, check, lambda: False)() for check in checks
    )


@contextlib.contextmanager
def out_of_memory_explained(device: torch.device, remedy: str) -> Iterator[None]:
    """Say in one line whose memory ran out, that of `device` or the machine's, and what to do.

    Raises:
        UserError: in place of whatever torch raised.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        on_host = isinstance(error, MemoryError) or any(sign in str(error) for sign in HOST_FULL)
        raise UserError(f"out of memory ({'cpu' if on_host else device}): {remedy}") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this says that a device, or the machine, is out of memory.

    torch raises `OutOfMemoryError` where it allocates on a GPU itself; else a plain `RuntimeError`,
    in which oneDNN (with torch 2.6) calls it a primitive that could not be created.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = (*GPU_FULL, *HOST_FULL)
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
