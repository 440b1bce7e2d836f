# The gateway as an image: for amd64 and arm64, without root, on a read-only root file system.
#
#   docker build -t ai-gateway .
#   docker run --rm --read-only --tmpfs /tmp -p 127.0.0.1:3000:3000 -v gateway-data:/app/data ai-gateway
#   docker run --rm ai-gateway check                     # any command of run.py in place of `serve`
#
# Pinned by digest, builds stay the same when the tag moves:
#   docker buildx imagetools inspect python:3.13-slim    # prints the digest
#   docker build --build-arg PYTHON_IMAGE=python:3.13-slim@sha256:… -t ai-gateway .
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build

# Another package index than pip's own, for those who have a mirror near by.
ARG PIP_INDEX_URL
# `--build-arg TRACES=1` adds the extra `traces` of setup.cfg: OpenTelemetry.
ARG TRACES=

# Without pip, which nothing needs at run time. Nothing is compiled from source, so no compiler is
# needed: a package without a wheel for this machine ends the build.
RUN python -m venv --without-pip /opt/venv
COPY requirements-run.lock requirements-traces.lock /tmp/
RUN if [ -n "$TRACES" ]; then lock=traces; else lock=run; fi && \
    python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --only-binary :all: \
      --disable-pip-version-check --require-hashes --requirement "/tmp/requirements-$lock.lock"

WORKDIR /app
COPY LICENSE run.py config.yaml .env.example ./
COPY config/config.schema.json config/config.schema.json
COPY sql sql
COPY gateway gateway

# Nobody can write bytecode later. `unchecked-hash`: no file in the image changes, so Python need
# not look whether one did.
RUN python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/venv/lib gateway && mkdir data


FROM ${PYTHON_IMAGE}

ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="AI Gateway" \
      org.opencontainers.image.description="One HTTP API in front of FastGPT, Dify, Coze, Zhipu and OpenAI-compatible upstreams" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# The Python image comes without the standard library's bytecode; every start and every health check
# would compile it anew.
RUN python -m compileall -q -j 0 -x '/(site-packages|test|tests|idlelib|ensurepip|turtledemo)/' \
      "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
    && useradd --uid 65532 --user-group --no-create-home --home-dir /app --shell /usr/sbin/nologin gateway

WORKDIR /app
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
# The SQLite file, uploads, and calls that wait for the database. A new named volume takes over the
# owner; a folder of the host must belong to 65532.
COPY --from=build --chown=65532:65532 /app/data /app/data

# GATEWAY_HOME: `data/` in config.yaml is in /app, wherever that file is mounted.
# HOST opens the port to the container's network, and so keys are demanded.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GATEWAY_HOME=/app \
    HOST=0.0.0.0 \
    PORT=3000

# As a number, so that Kubernetes can see that it is not root.
USER 65532:65532
VOLUME /app/data
EXPOSE 3000
# The first SIGTERM lets answers under way finish (server.drain_timeout): docker stop --time 150.
STOPSIGNAL SIGTERM

# Asks /readyz. It has the container's environment and reads /app/config.yaml: mount your own file
# there, and say HOST and PORT in the environment, not in the command. A probe takes about a third of a
# second of one core, so one percent of it; it says more than a look at the port.
# Kubernetes does not use it; it probes the ops port.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 CMD ["python", "run.py", "probe"]

# Python itself is process 1: it gets the signals, and it starts no processes that it would have to bury.
ENTRYPOINT ["python", "run.py"]
CMD ["serve"]
