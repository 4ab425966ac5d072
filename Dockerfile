# syntax=docker/dockerfile:1
# One file, three images, each as lean as its work:
#   docker build --target api         -t hilum-api .          HTTP, migrate, sweep: no torch, no openvino
#   docker build --target worker-cpu  -t hilum-worker .       OpenVINO and a bundle that is compiled already: no torch
#   docker build --target worker-gpu  -t hilum-worker-gpu .   torch with CUDA

FROM python:3.12-slim AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/venv/bin:$PATH \
    HILUM_HOME=/var/lib/hilum \
    HILUM_HOST=0.0.0.0
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/hilum hilum \
    && install -d -o hilum -g hilum -m 700 /var/lib/hilum/blobs \
    && python -m venv /opt/venv
WORKDIR /opt/hilum
# The server runs from its source tree (an editable install): shared/settings.py finds bundles/ and migrations/ beside itself.
COPY pyproject.toml README.md LICENSE alembic.ini ./
COPY shared ./shared

FROM base AS api
COPY api ./api
COPY migrations ./migrations
RUN pip install -e .
# The manifest alone: /v1/models reads it, the weights are the workers'.
COPY bundles/hilum-cxr/1.0.0/manifest.json ./bundles/hilum-cxr/1.0.0/manifest.json
USER hilum
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["hilum", "api", "--port", "8000"]

FROM base AS worker
# libgomp is what OpenVINO's and torch's threads come with; the slim image leaves it out.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY api ./api
COPY worker ./worker
COPY bundles ./bundles

# Torch converts the networks once, here; only the graphs leave this stage.
FROM worker AS compiled
RUN pip install --index-url https://download.pytorch.org/whl/cpu torch==2.13.0 \
    && pip install --no-deps --index-url https://download.pytorch.org/whl/cpu torchvision==0.28.0 \
    && pip install -e '.[worker]'
RUN HILUM_HOME=/opt/compiled hilum bundle compile

FROM worker AS worker-cpu
RUN pip install -e '.[worker]'
COPY --from=compiled --chown=hilum /opt/compiled/cache /var/lib/hilum/cache
USER hilum
# A worker has no port: it is well as long as its own row in the database is fresh, which /readyz of the API reports.
HEALTHCHECK NONE
CMD ["hilum", "worker"]

FROM worker AS worker-gpu
# The ordinary Linux wheels of torch are CUDA builds.
RUN pip install torch==2.13.0 torchvision==0.28.0 && pip install -e '.[worker]'
ENV HILUM_DEVICE=cuda \
    HILUM_RUNTIME=torch
USER hilum
HEALTHCHECK NONE
CMD ["hilum", "worker"]
