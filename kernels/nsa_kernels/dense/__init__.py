"""Dense attention over the paged caches by whichever library is there: the other side of every
comparison, and what dense layers of a model run on.

A backend is two functions with the signatures of our own Triton kernels. Which of them can be used
here, and why the others cannot, is `dense_backends`.
"""

from nsa_kernels.dense.backends import (
    BackendError,
    BackendName,
    DenseBackend,
    dense_backend,
    dense_backends,
    dense_decode,
    dense_prefill,
)

__all__ = [
    "BackendError",
    "BackendName",
    "DenseBackend",
    "dense_backend",
    "dense_backends",
    "dense_decode",
    "dense_prefill",
]
