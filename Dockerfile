# The job as one image: docker run, kubectl and apptainer start the same program with the same arguments.
#
#     docker build --tag transfer-job .                             for CPUs
#     docker build --tag transfer-job:gpu --build-arg VARIANT=gpu . for NVIDIA GPUs, with CUDA from wheels
#
# weights/README.md says how pre-trained weights come into it.

# The digest is that of all platforms, of 3.11.16. A mirror of it, or a base that knows a package index of your own, will do, too.
ARG BASE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${BASE} AS build
ARG VARIANT=cpu

# Dependencies before the source, which changes more often. Nobody in the image needs a pip, tests, headers for C++,
# libclang, which TensorFlow asks for and never loads, or what AWS has beside S3 and signing in: 0.5 GB.
COPY requirements/${VARIANT}.txt /build/requirements.txt
RUN python -m venv --without-pip /opt/job \
    && python -m pip --python /opt/job/bin/python install --no-cache-dir --no-compile --require-hashes \
       --requirement /build/requirements.txt \
    && find /opt/job/lib -type d \
       '(' -name tests -o -name include -o -path '*/clang/native' -o -path '*/botocore/data/[!s]*' ')' -prune -exec rm -r '{}' +

# A user who may not write there could never keep the bytecode. It is valid whatever becomes of the files' times.
RUN python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/job/lib

COPY pyproject.toml README.md LICENSE /build/
COPY job /build/job
RUN python -m pip --python /opt/job/bin/python install --no-cache-dir --no-compile --no-deps --no-build-isolation /build \
    && python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/job/lib/*/site-packages/job


FROM ${BASE}

# Whoever the job runs as, `--user` included, can write to these and to a new volume in their place.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp job \
    && install -d -o job -m 1777 /data /out /cache /opt/keras/models

COPY --from=build /opt/job /opt/job
ENV PATH=/opt/job/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONSAFEPATH=1 \
    HOME=/tmp \
    KERAS_HOME=/opt/keras

# Shows that everything can be imported, and leaves the bytecode of the standard library, which slim images come without.
RUN python -c "import job.serving.parity, job.serving.predict, job.ranking.rank, job.pipeline.run, boto3, cleanlab, faiss, google.cloud.storage, \
    matplotlib.figure, tensorboardX, tensorflow, tensorflow_datasets"

COPY weights /opt/keras/models

ARG REVISION=unknown
LABEL org.opencontainers.image.title="transfer-job" \
      org.opencontainers.image.description="One batch job from labelled photos to an image classifier you can trust and ship" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"

USER 10001
WORKDIR /out
ENTRYPOINT ["python", "-P", "-m", "job"]
CMD ["--help"]
