"""Tests run small models: more than one thread makes them slower, most of all on a busy machine."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Triton reads it when it is imported: without a GPU, kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell without job control starts background jobs with Ctrl-C ignored, which children inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
