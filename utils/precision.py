"""Which floating-point type the convolutions run in."""

import contextlib
import textwrap
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F

from utils.common.errors import UserError

PRECISIONS = ("auto", "bf16", "fp16", "fp32")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


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
        UserError: the device cannot compute in the type that `name` asks for.
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
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and _cpu_has_bf16():
        return "bf16"
    return "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context for forward passes in `precision` ("bf16", "fp16" or "fp32")."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 itself (AVX-512 BF16 or AMX); emulation is slow."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this says that a device, or the machine, is out of memory.

    torch raises `OutOfMemoryError` where it allocates on a GPU itself; else a plain `RuntimeError`,
    in which oneDNN (with torch 2.6) calls it a primitive that could not be created.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = (
        "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
        "DefaultCPUAllocator", "bad_alloc", "could not create a primitive",
    )  # fmt: skip
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
