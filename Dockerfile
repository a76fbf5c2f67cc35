# The images of SpecRouter, one target each: router, operator, level.
#
#   docker build --target router -t specrouter-router .
#   docker build --target level --build-arg ACCELERATOR=cuda -t specrouter-level:cuda .
#
# BASE needs Python 3.11 and pip, nothing else: CUDA comes with torch, the driver from the node. Packages come from the lock
# files alone, hashes checked; the package index is pip's own setting (mount a pip.conf, or set PIP_INDEX_URL as a secret).
ARG BASE=docker.io/library/python:3.11-slim

FROM ${BASE} AS tools
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1
COPY requirements/image.lock /src/requirements/
RUN python3 -m venv --without-pip /tools && \
    python3 -m pip --python /tools/bin/python install -q --require-hashes -r /src/requirements/image.lock

# Our own packages, as one wheel.
FROM tools AS wheel
COPY pyproject.toml README.md LICENSE /src/
COPY specrouter_core /src/specrouter_core
COPY protos/python /src/protos/python
COPY services /src/services
COPY operator /src/operator
RUN cd /src && SOURCE_DATE_EPOCH=315532800 /tools/bin/python -m hatchling build -t wheel -d /wheel

# What each image has, under /app: a virtual environment without pip. What is not ours, and changes seldom, is a layer of its own.
FROM tools AS router-packages
COPY requirements/router.lock /src/requirements/
COPY images/packages.sh /src/images/
RUN sh /src/images/packages.sh /src/requirements/router.lock

FROM tools AS operator-packages
COPY requirements/operator.lock /src/requirements/
COPY images/packages.sh /src/images/
RUN sh /src/images/packages.sh /src/requirements/operator.lock

FROM tools AS level-packages
# cpu or cuda: whether the image carries NVIDIA's libraries, 3 GB.
ARG ACCELERATOR=cpu
COPY requirements/level.lock /src/requirements/
COPY images/packages.sh images/level.sh images/hollow_cuda.py /src/images/
RUN sh /src/images/level.sh ${ACCELERATOR}

FROM router-packages AS router-own
COPY images/own.sh /src/images/
COPY --from=wheel /wheel /wheel
RUN sh /src/images/own.sh specrouter-router

FROM operator-packages AS operator-own
COPY images/own.sh /src/images/
COPY --from=wheel /wheel /wheel
RUN sh /src/images/own.sh specrouter-operator

FROM level-packages AS level-own
COPY images/own.sh /src/images/
COPY --from=wheel /wheel /wheel
RUN sh /src/images/own.sh specrouter-level

FROM ${BASE} AS run
ARG VERSION=0.1.0
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="SpecRouter"
ENV PATH=/app/bin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 65532:65532
WORKDIR /

FROM run AS router
LABEL org.opencontainers.image.title="specrouter-router" \
      org.opencontainers.image.description="Drives a family of language models as one: REST and gRPC"
COPY --from=router-packages /app /app
COPY --from=router-own /own /app
EXPOSE 8000 8001
ENTRYPOINT ["specrouter-router"]

FROM run AS operator
LABEL org.opencontainers.image.title="specrouter-operator" \
      org.opencontainers.image.description="Keeps families of levels, their replicas and weights"
COPY --from=operator-packages /app /app
COPY --from=operator-own /own /app
ENTRYPOINT ["specrouter-operator"]

FROM run AS level
LABEL org.opencontainers.image.title="specrouter-level" \
      org.opencontainers.image.description="One level of a family: a model behind LevelService"
# For NVIDIA's container toolkit, where the node has one.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=level-packages /app /app
COPY --from=level-own /own /app
EXPOSE 8080 9000
ENTRYPOINT ["specrouter-level"]
