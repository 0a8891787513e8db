"""Which of several processes (`torchrun`) this one is; without them it is the only one."""

import torch.distributed as dist


def get_rank() -> int:
    """Number of this process, 0 for the one that writes."""
    return dist.get_rank() if _are_several() else 0


def get_world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _are_several() else 1


def is_main() -> bool:
    """Whether this process writes and prints."""
    return get_rank() == 0


def _are_several() -> bool:
    return dist.is_available() and dist.is_initialized()
