# An image with the command hsakd, for CPUs, or for NVIDIA GPUs with DEVICE=gpu (the host needs a driver and NVIDIA's
# container toolkit):
#   docker build --tag hsakd .
#   docker build --tag hsakd --build-arg DEVICE=gpu .
# Relative paths are below /workspace, which contains configs/. Data and results belong in volumes. Workers that load data
# pass batches through shared memory, of which Docker provides 64 MB: --shm-size adds more.
#   docker run --rm --volume "$PWD/data:/workspace/data" --volume "$PWD/runs:/workspace/runs" --shm-size 2g hsakd \
#     fit --config configs/cifar100/teacher_joint_wrn_40_2.yaml --data.init_args.download true
# and --gpus all for GPUs. A folder of the host is writable for the user whose number UID the image was built with.
ARG DEVICE=cpu

FROM python:3.12-slim AS base
# The compiler and libjpeg's headers build the kernels that make fits on CPUs faster, and torch.compile needs the former.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libjpeg62-turbo-dev \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

FROM base AS wheel
COPY . /src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /src

FROM base AS pytorch-cpu
# hadolint ignore=DL3013
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu

FROM base AS pytorch-gpu
# hadolint ignore=DL3013
RUN pip install --no-cache-dir torch torchvision

# hadolint ignore=DL3006
FROM pytorch-${DEVICE}
ARG EXTRAS=plots,timm,export
ARG UID=1000
COPY --from=wheel /wheels /wheels
# hadolint ignore=DL3013
RUN pip install --no-cache-dir "$(echo /wheels/*.whl)[$EXTRAS]"
RUN useradd --uid "$UID" --create-home hsakd \
    && mkdir -p /workspace/data /workspace/runs \
    && chown -R hsakd /workspace
USER $UID
WORKDIR /workspace
RUN hsakd recipes configs
VOLUME ["/workspace/data", "/workspace/runs"]
ENTRYPOINT ["hsakd"]
CMD ["--help"]
