# syntax=docker/dockerfile:1
# One file, two images: `api` (API, dashboard, dispatcher, scheduler, migrations; no torch) and `worker`.
#   docker build --target api -t bitwright-api .
#   docker build --target worker -t bitwright-worker .

FROM python:3.11-slim AS base
# Another package index besides pip's own, e.g. one with builds of torch without CUDA, which are a tenth of the size.
ARG PIP_EXTRA_INDEX_URL=""
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/bitwright
ENV PATH=/opt/bitwright/bin:$PATH
WORKDIR /source
COPY constraints.txt pyproject.toml README.md LICENSE ./

# What is installed does not depend on the sources, so that a change of them does not install it again.
FROM base AS api-build
RUN mkdir app solver workers migrations && touch app/__init__.py solver/__init__.py workers/__init__.py migrations/__init__.py \
    && pip install --constraint constraints.txt ".[server]" && pip uninstall --yes bitwright
COPY app app
COPY solver solver
COPY workers workers
COPY migrations migrations
RUN pip install --no-deps .

FROM base AS worker-build
RUN mkdir app solver workers migrations && touch app/__init__.py solver/__init__.py workers/__init__.py migrations/__init__.py \
    && pip install --constraint constraints.txt ".[huggingface,kernel]" && pip uninstall --yes bitwright
COPY app app
COPY solver solver
COPY workers workers
COPY migrations migrations
RUN pip install --no-deps .

FROM python:3.11-slim AS runtime
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PATH=/opt/bitwright/bin:$PATH \
    BITWRIGHT_DATA_DIR=/data BITWRIGHT_TLS_DIR=/tls/engine
# Volumes take the owner of the directories that they are first mounted on.
RUN useradd --uid 10001 --create-home bitwright && mkdir /data /tls && chown bitwright:bitwright /data /tls
USER bitwright
WORKDIR /home/bitwright
ENTRYPOINT ["bitwright"]

FROM runtime AS worker
# What numba compiles is kept, and transformers looks for its own files, where a read-only container can write.
ENV NUMBA_CACHE_DIR=/tmp/numba HF_HOME=/tmp/huggingface
COPY --from=worker-build /opt/bitwright /opt/bitwright
CMD ["worker"]

FROM runtime AS api
COPY --from=api-build /opt/bitwright /opt/bitwright
EXPOSE 8400
CMD ["api", "--host", "0.0.0.0"]
