"""What a first start would take long for, done at set-up: `python -m nsa_serve.engine.set_up`."""

from nsa_serve.config import EngineConfig
from nsa_serve.engine.load_model import choose_device, load_model_runner
from nsa_serve.model import fused
from nsa_serve.model.compiled import telling_of_compilation
from nsa_serve.model.loading.progress import Progress, show_on_stderr

_WHAT = "compiling for this CPU (some 20 seconds)"


def compile_for_this_cpu(progress: Progress = show_on_stderr) -> None:
    """Have numba compile and keep what serving the built-in model takes on a CPU. Does nothing
    where a GPU serves or numba is missing."""
    if choose_device("auto").type != "cpu" or not fused.INSTALLED:
        return
    begun = []

    def begin() -> None:
        begun.append(True)
        progress(_WHAT, 0.0)

    with telling_of_compilation(begin):
        load_model_runner(EngineConfig(device="cpu", max_model_len=1024, cpu_cache_gib=0.25))
    if begun:
        progress(_WHAT, 1.0)


if __name__ == "__main__":
    compile_for_this_cpu()
