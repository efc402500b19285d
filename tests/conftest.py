"""Tests run small models: more than one thread makes them slower, most of all on a busy machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
