# The server in two variants: `docker build --target cpu .` and `docker build --target gpu .`.
# Either runs as a user without rights, writes to /cache and /tmp only, and brings no model: the
# built-in one is fetched on the first start, others are mounted.

ARG PYTHON_IMAGE=python:3.12.11-slim-bookworm

# The wheel is pure Python, so that both variants share it.
FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY nsa_serve nsa_serve
COPY kernels kernels
COPY scheduler scheduler
COPY api api
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${PYTHON_IMAGE} AS packages-cpu
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY pyproject.toml /source/
COPY scripts/install_torch.py /source/scripts/
COPY --from=wheel /wheels /wheels
# Of torch the CPU build: without CUDA the image is a quarter of the size.
RUN python -m venv /opt/nsa-serve \
    && TORCH_INDEX_URL=${TORCH_INDEX_URL} /opt/nsa-serve/bin/python /source/scripts/install_torch.py \
    && /opt/nsa-serve/bin/python -m pip install --no-cache-dir "$(ls /wheels/*.whl)[cpu,otel]"

FROM ${PYTHON_IMAGE} AS packages-gpu
COPY --from=wheel /wheels /wheels
# The default build of torch brings CUDA and Triton; of the host only the driver is needed.
RUN python -m venv /opt/nsa-serve \
    && /opt/nsa-serve/bin/python -m pip install --no-cache-dir "$(ls /wheels/*.whl)[otel]"

FROM ${PYTHON_IMAGE} AS base
RUN groupadd --gid 10001 nsa && useradd --uid 10001 --gid nsa --no-create-home nsa \
    && install --directory --owner=nsa --group=nsa /cache
ENV PATH=/opt/nsa-serve/bin:$PATH \
    HOME=/cache \
    NSA_SERVE_CACHE=/cache/nsa-serve \
    NUMBA_CACHE_DIR=/cache/numba \
    TRITON_CACHE_DIR=/cache/triton \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /cache
VOLUME /cache
EXPOSE 8000
ENTRYPOINT ["nsa-serve"]
# In a container the port is reached through the host's, which docker-compose.yml keeps on 127.0.0.1.
CMD ["serve", "--host", "0.0.0.0"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]

FROM base AS gpu
# Triton builds a small launcher for each kernel with the system's C compiler.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=packages-gpu /opt/nsa-serve /opt/nsa-serve
USER 10001:10001

FROM base AS cpu
COPY --from=packages-cpu /opt/nsa-serve /opt/nsa-serve
USER 10001:10001
