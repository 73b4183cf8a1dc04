# syntax=docker/dockerfile:1
# The samegraph server. Runs on an NVIDIA GPU when the container is given one (--gpus all) and on the CPU otherwise.
#
#   docker build -t samegraph .                      models are mounted:  docker run -p 8000:8000 -v ./models:/models:ro samegraph
#   docker build -t samegraph --target baked .       models are baked in, from models/<name>/<version>/ of the build context
#   docker build --build-arg BASE_IMAGE=ubuntu:24.04 -t samegraph:cpu .     the small image, without CUDA libraries
#
# scripts/prove_dockerfile.py runs these steps in a clean directory; `make prove-dockerfile`.

# CUDA 13.0 with cuDNN 9 is what the pinned onnxruntime-gpu wheel is built for; Ubuntu 24.04 brings Python 3.12.
ARG BASE_IMAGE=nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS base
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3.12 \
    && rm -rf /var/lib/apt/lists/*

FROM base AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3.12-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3.12 -m venv /opt/samegraph
WORKDIR /src
# Locked dependencies first: a change of code keeps this layer.
COPY pyproject.toml constraints.txt ./
COPY transforms/pyproject.toml transforms/
COPY scripts/requirements.py scripts/
RUN python3.12 scripts/requirements.py > requirements.txt \
    && /opt/samegraph/bin/pip install --no-cache-dir --disable-pip-version-check -r requirements.txt -c constraints.txt
COPY README.md LICENSE ./
COPY transforms/README.md transforms/
COPY transforms/samegraph_transforms transforms/samegraph_transforms
COPY service service
RUN /opt/samegraph/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation ./transforms . \
    && /opt/samegraph/bin/pip check \
    && /opt/samegraph/bin/python -m compileall -q /opt/samegraph/lib

FROM base AS runtime
RUN useradd --system --uid 10001 --create-home samegraph \
    && mkdir /models
COPY --from=build /opt/samegraph /opt/samegraph
ENV PATH=/opt/samegraph/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /home/samegraph
USER 10001
EXPOSE 8000
# The generous start period covers loading and golden replay of large packages; a failing probe inside it does not count.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
# Exec form: the server is process 1 and gets SIGTERM, on which it drains.
ENTRYPOINT ["samegraph"]
CMD ["serve", "--repository", "/models", "--host", "0.0.0.0", "--port", "8000"]

FROM runtime AS baked
COPY models /models

# The last stage is what a plain `docker build` makes: /models is empty until something is mounted there.
FROM runtime AS mounted
