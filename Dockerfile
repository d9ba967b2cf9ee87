# The image of the job, for docker run, Kubernetes and Apptainer.
#
#     docker build --tag transfer-job .                             for CPUs
#     docker build --tag transfer-job:gpu --build-arg VARIANT=gpu . for NVIDIA GPUs, with CUDA from wheels
#
# weights/README.md explains how to include pre-trained weights.

# Python 3.11.16 for all platforms, pinned by digest. To use a mirror or your own base image: --build-arg BASE=...
ARG BASE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${BASE} AS build
ARG VARIANT=cpu

# For strip. Debian keeps only the newest version of a package, so a pinned one would soon be missing.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*

# Dependencies come before the source, which changes more often. Files that no run needs are removed in the same layer.
COPY image/slim.sh requirements/${VARIANT}.txt /build/
RUN python -m venv --without-pip /opt/job \
    && python -m pip --python /opt/job/bin/python install --no-cache-dir --no-compile --require-hashes \
       --requirement /build/${VARIANT}.txt \
    && sh /build/slim.sh /opt/job/lib/python3*/site-packages

COPY pyproject.toml README.md LICENSE /build/
COPY job /build/job
RUN python -m pip --python /opt/job/bin/python install --no-cache-dir --no-compile --no-deps --no-build-isolation /build


FROM ${BASE}

# Any user (`docker run --user`) can write to these folders, and to new volumes that are mounted there.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp job \
    && install -d -o job -m 1777 /data /out /cache /opt/keras/models

COPY --from=build /opt/job /opt/job
ENV PATH=/opt/job/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONSAFEPATH=1 \
    HOME=/tmp \
    KERAS_HOME=/opt/keras \
    PIP_PYTHON=/opt/job/bin/python

# The parts of the driver that the NVIDIA Container Toolkit mounts, and the folder in which GKE mounts them.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib64

# Check that everything can be imported, which also compiles it: the user of the container cannot write bytecode. The packages
# contain more code that the job never imports. A 1 in byte 4 keeps bytecode valid if the times of files change (PEP 552).
RUN python -c "import importlib, os, pkgutil, sys; \
    import boto3, cleanlab, faiss, google.cloud.storage, keras, openpyxl, pillow_heif, PIL.Image, pyarrow.dataset, \
        sklearn.linear_model, tensorboardX, tensorflow, tensorflow_datasets, job; \
    PIL.Image.init(); \
    names = [module.name for module in pkgutil.walk_packages(job.__path__, 'job.')]; \
    [importlib.import_module(name) for name in names if name != 'job.__main__']; \
    files = {getattr(module, '__cached__', None) or '' for module in sys.modules.values()}; \
    bytecode = map(lambda file: open(file, 'r+b'), filter(os.path.isfile, files)); \
    [(file.seek(4), file.write(b'\x01'), file.close()) for file in bytecode]" \
    && python -B -c "import kagglehub" # Not compiled: only a download needs it.

COPY THIRD_PARTY.md /opt/job/
COPY weights /opt/keras

ARG REVISION=unknown
LABEL org.opencontainers.image.title="transfer-job" \
      org.opencontainers.image.description="One batch job from labelled photos to an image classifier you can trust and ship" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"

USER 10001
WORKDIR /out
ENTRYPOINT ["python", "-P", "-m", "job"]
CMD ["quickstart"]
