"""The memory that this machine has for a model."""

from nsa_serve.engine.memory import GIB, available_memory


def gpu_memory() -> list[tuple[str, int]]:
    """Name and bytes of each GPU that torch can use."""
    import torch

    if not torch.cuda.is_available():
        return []
    properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [(gpu.name, gpu.total_memory) for gpu in properties]


def memory_gib() -> float:
    """GiB of the first GPU; where there is none, of main memory that is free."""
    gpus = gpu_memory()
    return (gpus[0][1] if gpus else available_memory()) / GIB
