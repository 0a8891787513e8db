"""Which floating-point type the convolutions run in."""

import contextlib
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

from utils.common.errors import UserError
from utils.common.progress import say_once

PRECISIONS = ("auto", "bf16", "fp16", "fp32")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# What torch says where it raises no OutOfMemoryError; the last is oneDNN's, with torch 2.6.
OUT_OF_MEMORY = (
    "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "DefaultCPUAllocator", "bad_alloc",
    "could not create a primitive",
)  # fmt: skip


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
        UserError: there is no such type.
    """
    has_bf16 = _has_bf16(device.type)
    if name == "auto":
        return "bf16" if has_bf16 else "fp16" if device.type == "cuda" else "fp32"
    if name not in DTYPES:
        raise UserError(f"--precision {name}: unknown: choose from {', '.join(PRECISIONS)}")
    if name == "bf16" and not has_bf16:
        say_once(f"--precision bf16: {device} only emulates it, far slower than fp32")
    return name


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context for forward passes in `precision` ("bf16", "fp16" or "fp32")."""
    dtype = DTYPES[precision]
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


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
def out_of_memory_explained(remedy: str) -> Iterator[None]:
    """Where memory runs out, say in one line what to do.

    Raises:
        UserError: in place of whatever torch raised.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory: {remedy}") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this says that a device, or the machine, is out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY)
