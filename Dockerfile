# Echotrain in a container. Build:  docker build -t echotrain .
# Run:  docker run --read-only --tmpfs /tmp --cap-drop ALL -p 9002:9002 echotrain
# Metrics and health answer on loopback inside; to reach them from outside also -p 127.0.0.1:9090:9090 -e ECHOTRAIN_ADMIN__HOST=::
# The default command says --insecure-lan: which machines reach the port is decided where it is published (-p ADDRESS:9002:9002, a
# network policy). To decide it here, give a command without that word: serve --host :: --allow 10.1.2.0/24, or settings for TLS.
# GPU:  docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 -t echotrain:cuda .  and run with --gpus all
ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS build
# The flavour of torch is where its wheel is found: the CPU index, a CUDA index, or a folder of wheels.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG WHEELS=/opt/wheels
RUN apt-get update -q \
 && apt-get install -y -q --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/echotrain
ENV PATH=/opt/echotrain/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY deploy/requirements /build/requirements
# torch first, with its own index, so that nothing later can pull another flavour in its place
RUN if ls "${WHEELS}"/torch-*.whl >/dev/null 2>&1; \
    then pip install --quiet --find-links "${WHEELS}" -r /build/requirements/torch.txt; \
    else pip install --quiet --extra-index-url "${TORCH_INDEX}" -r /build/requirements/torch.txt; fi
RUN pip install --quiet --require-hashes --no-deps -r /build/requirements/base.txt
COPY pyproject.toml README.md LICENSE /build/
COPY server /build/server
COPY pipelines /build/pipelines
COPY models /build/models
RUN pip wheel --quiet --no-deps --wheel-dir /build/dist /build \
 && pip install --quiet --no-deps /build/dist/echotrain-*.whl \
 && pip check \
 && python -m compileall -q /opt/echotrain/lib/python3*/site-packages/server /opt/echotrain/lib/python3*/site-packages/pipelines \
      /opt/echotrain/lib/python3*/site-packages/models

FROM ${BASE}
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Echotrain" \
      org.opencontainers.image.description="MR reconstruction server: MRD in, images with uncertainty out" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="${REVISION}"
# No program of the image may raise its rights: set-user-id bits go.
RUN apt-get update -q \
 && apt-get install -y -q --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* \
 && find / -xdev -perm /6000 -type f -exec chmod a-s {} + \
 && useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin echotrain
COPY --from=build /opt/echotrain /opt/echotrain
ENV PATH=/opt/echotrain/bin:$PATH \
    PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    MPLCONFIGDIR=/tmp
USER 10001:10001
WORKDIR /tmp
EXPOSE 9002 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=6 \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9090/livez', timeout=2)"]
ENTRYPOINT ["echotrain"]
CMD ["serve", "--host", "::", "--insecure-lan"]
