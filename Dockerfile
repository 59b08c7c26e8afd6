# The worker's images. docs/internals/container-management.md lists stages, sizes and arguments.
#
#   docker build -t a1111-worker .                                 A1111 v1.9.3, no model
#   docker build --build-arg WITH_ADETAILER=0 ...                  without that extension
#   docker build -t a1111-worker:embedded --target embedded .      without A1111: with diffusers

ARG A1111_PYTHON_IMAGE=docker.io/library/python:3.10-slim-bookworm@sha256:68d914ec641a0b69267ce65184d000a2bc3a9ee2590ab702b82250ab2385735a
ARG EMBEDDED_PYTHON_IMAGE=docker.io/library/python:3.12-slim-bookworm@sha256:782412e85d0f0984994c290652577d4018aff08145c85b262bb63dc0c7522254

# --- the system of both images -------------------------------------------------------------------

FROM ${A1111_PYTHON_IMAGE} AS a1111-system
# Debian removes a package's version when it publishes a fix, so versions cannot be pinned here.
# curl: health check and debugging; tcmalloc: start.sh preloads it; tini: reaps dead processes.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends curl libtcmalloc-minimal4 tini \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log \
 && useradd --uid 1000 --create-home worker
ENV PYTHON=/opt/worker/bin/python \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

FROM ${EMBEDDED_PYTHON_IMAGE} AS embedded-system
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends curl tini \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log \
 && useradd --uid 1000 --create-home worker
ENV PYTHON=/opt/worker/bin/python \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# --- Python environments -------------------------------------------------------------------------
# Each is installed in its final stage: copying it from another one costs 6 GB and a minute. The
# largest are installed in parts, because layers are downloaded beside each other.

FROM a1111-system AS a1111-lock
COPY image/a1111.lock image/split_lock.py /build/
RUN python3.10 /build/split_lock.py /build/a1111.lock /lock

FROM a1111-system AS a1111-python
ARG INDEX_URL=https://pypi.org/simple
COPY image/build.lock image/install-python.sh image/unused-files /build/
COPY --from=a1111-lock /lock/cudnn.lock /build/
RUN --mount=type=cache,target=/root/.cache/uv \
    /build/install-python.sh 3.10 /opt/a1111 /build/cudnn.lock
COPY --from=a1111-lock /lock/blas.lock /build/
RUN --mount=type=cache,target=/root/.cache/uv \
    /build/install-python.sh 3.10 /opt/a1111 /build/blas.lock
COPY --from=a1111-lock /lock/cuda.lock /build/
RUN --mount=type=cache,target=/root/.cache/uv \
    /build/install-python.sh 3.10 /opt/a1111 /build/cuda.lock
COPY --from=a1111-lock /lock/torch.lock /build/
RUN --mount=type=cache,target=/root/.cache/uv \
    /build/install-python.sh 3.10 /opt/a1111 /build/torch.lock
COPY --from=a1111-lock /lock/rest.lock /build/
RUN --mount=type=cache,target=/root/.cache/uv \
    /build/install-python.sh 3.10 /opt/a1111 /build/rest.lock
COPY image/torch_build.py /build/
RUN /opt/a1111/bin/python /build/torch_build.py > /opt/a1111/torch_build.json
ARG WITH_CONTROLNET=1
COPY image/controlnet.lock /build/
RUN --mount=type=cache,target=/root/.cache/uv \
    [ "$WITH_CONTROLNET" != 1 ] || /build/install-python.sh 3.10 /opt/a1111 /build/controlnet.lock
ARG WITH_ADETAILER=1
COPY image/adetailer.lock /build/
RUN --mount=type=cache,target=/root/.cache/uv \
    [ "$WITH_ADETAILER" != 1 ] || /build/install-python.sh 3.10 /opt/a1111 /build/adetailer.lock

FROM a1111-system AS worker-python
ARG INDEX_URL=https://pypi.org/simple
COPY image/build.lock image/install-python.sh image/unused-files image/worker.lock /build/
RUN --mount=type=cache,target=/root/.cache/uv \
    /build/install-python.sh 3.10 /opt/worker /build/worker.lock

FROM embedded-system AS embedded-lock
COPY image/embedded.lock image/split_lock.py /build/
RUN python3.12 /build/split_lock.py /build/embedded.lock /lock

FROM embedded-system AS embedded-python
ARG INDEX_URL=https://pypi.org/simple
COPY image/build.lock image/install-python.sh image/unused-files /build/
COPY --from=embedded-lock /lock/cudnn.lock /build/
RUN --mount=type=cache,target=/root/.cache/uv \
    /build/install-python.sh 3.12 /opt/worker /build/cudnn.lock
COPY --from=embedded-lock /lock/blas.lock /build/
RUN --mount=type=cache,target=/root/.cache/uv \
    /build/install-python.sh 3.12 /opt/worker /build/blas.lock
COPY --from=embedded-lock /lock/cuda.lock /build/
RUN --mount=type=cache,target=/root/.cache/uv \
    /build/install-python.sh 3.12 /opt/worker /build/cuda.lock
COPY --from=embedded-lock /lock/torch.lock /build/
RUN --mount=type=cache,target=/root/.cache/uv \
    /build/install-python.sh 3.12 /opt/worker /build/torch.lock
COPY --from=embedded-lock /lock/rest.lock /build/
RUN --mount=type=cache,target=/root/.cache/uv \
    /build/install-python.sh 3.12 /opt/worker /build/rest.lock
COPY image/torch_build.py /build/
RUN /opt/worker/bin/python /build/torch_build.py > /opt/worker/torch_build.json

# --- A1111 v1.9.3 and its companions -------------------------------------------------------------

FROM a1111-system AS a1111-source
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends git \
 && rm -rf /var/lib/apt/lists/*
ARG GIT_URL=https://github.com
ENV GIT_URL=${GIT_URL}
COPY image/fetch-source.sh /build/
# Each at the commit that A1111 v1.9.3 names, except CLIP: a later one, which does not need
# pkg_resources. Stability-AI/stablediffusion was deleted in 2025. BLIP and CLIP are for
# /interrogate.
WORKDIR /src/webui
RUN /build/fetch-source.sh . 1c0a0c4c26f78c32095ebc7f8af82f5c04fca8c0 \
      "AUTOMATIC1111/stable-diffusion-webui camenduru/stable-diffusion-webui" \
      CHANGELOG.md LICENSE.txt configs embeddings extensions extensions-builtin html javascript \
      launch.py localizations models modules script.js scripts style.css textual_inversion_templates webui.py
WORKDIR /src/webui/repositories
RUN /build/fetch-source.sh stable-diffusion-stability-ai cf1d67a6fd5ea1aa600c4df58e5b47da45f6bdbf \
      "w-e-w/stablediffusion camenduru/stablediffusion" LICENSE configs ldm \
 && /build/fetch-source.sh generative-models 45c443b316737a4ab6e40413d7794a7f5657c19f \
      "Stability-AI/generative-models w-e-w/generative-models" LICENSE-CODE configs sgm \
 && /build/fetch-source.sh k-diffusion ab527a9a6d347f364e3d185ba6d714e22d80cb3c \
      "crowsonkb/k-diffusion Birch-san/k-diffusion" LICENSE k_diffusion \
 && /build/fetch-source.sh BLIP 48211a1594f1321b00f14c9f7a5b4813144b2fb9 \
      "salesforce/BLIP pharmapsychotic/BLIP" LICENSE.txt configs models \
 && /build/fetch-source.sh CLIP d05afc436d78f1c48dc0dbf8e5980a9d471f35f6 \
      "openai/CLIP rom1504/CLIP" LICENSE clip \
 && ln -s repositories/CLIP/clip ../clip
# Extensions are fetched here and nowhere else: none can be installed at run time. Of ControlNet's
# scripts, one reads films from the disk.
ARG WITH_CONTROLNET=1
ARG WITH_ADETAILER=1
WORKDIR /src/webui/extensions
RUN if [ "$WITH_CONTROLNET" = 1 ]; then \
      /build/fetch-source.sh sd-webui-controlnet 56cec5b2958edf3b1807b7e7b2b1b5186dbd2f81 \
        "Mikubill/sd-webui-controlnet huchenlei/sd-webui-controlnet" LICENSE annotator \
        internal_controlnet models preload.py scripts ":!scripts/movie2movie.py"; fi \
 && if [ "$WITH_ADETAILER" = 1 ]; then \
      /build/fetch-source.sh adetailer 36189cbea735b85fd01e98ac42002b8ce6f0e41d \
        "Bing-su/adetailer sdwebui-extensions/adetailer" LICENSE.md aaaaaa adetailer \
        controlnet_ext preload.py scripts; fi
COPY image/a1111_extension /src/webui/extensions-builtin/a1111-worker
RUN python3.10 -m compileall -q -j 0 /src/webui

FROM a1111-python AS clip-tokenizer
COPY engine/__init__.py /build/engine/
COPY engine/prompt/__init__.py engine/prompt/tokenizer.py /build/engine/prompt/
COPY engine/prompt/clip /build/engine/prompt/clip
COPY image/clip_tokenizer.py /build/
RUN PYTHONPATH=/build /opt/a1111/bin/python /build/clip_tokenizer.py /opt/huggingface

# --- models of templates -------------------------------------------------------------------------

FROM worker-python AS models
COPY image/bake.sh /build/
COPY model_manager.py templates.json /app/
COPY worker /app/worker
ARG BAKE=
ARG CIVITAI_URL=
ARG HF_ENDPOINT=
ARG TRUSTED_HOSTS=
RUN --mount=type=secret,id=civitai_api_key \
    --mount=type=secret,id=hf_token \
    --mount=type=cache,target=/cache \
    /build/bake.sh /cache

# --- the embedded engine's image -----------------------------------------------------------------

FROM embedded-system AS embedded-app
WORKDIR /app
COPY benchmarks benchmarks
COPY demo models
COPY templates.json test_input.json ./
COPY engine engine
COPY image/entrypoint.sh image/healthcheck.sh image/torch_build.py image/
COPY handler.py model_manager.py runpod_sdk.py start.sh ./
COPY gateway gateway
COPY worker worker
RUN python3.12 -m compileall -q -j 0 .

FROM embedded-python AS embedded
RUN install -d -o worker -g worker /data /models
ENV BAKED_MODELS_DIR=/app/models \
    DEFAULT_TEMPLATE=demo \
    ENGINE=embedded \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all \
    PORT=7860 \
    RUN_DIR=/tmp/worker \
    WEBUI_DIR=/data
WORKDIR /app
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=10m CMD ["/app/image/healthcheck.sh"]
ENTRYPOINT ["/app/image/entrypoint.sh"]
COPY --from=embedded-app /app /app
# A first job, as the worker's user and in folders that do not stay.
RUN folder=$(mktemp -d) \
 && chown worker "$folder" \
 && DEVICE=cpu MODELS_DIR=$folder/models OUTPUT_DIR=$folder/outputs RUN_DIR=$folder/run \
    WEBUI_DIR=$folder/data WEBUI_URL=http://127.0.0.1:38417 \
    setpriv --reuid=worker --regid=worker --clear-groups \
    ./start.sh --test_input '{"input": {"prompt": "a red circle on a blue background"}}' \
 && test -n "$(find "$folder/outputs" -name "*.png" -size +1k)" \
 && rm -r "$folder"
ARG REVISION=unknown
ARG VERSION=unknown
# For the report of benchmarks/gpu.py.
ENV REVISION=${REVISION}
LABEL org.opencontainers.image.title="A1111 worker, embedded engine" \
      org.opencontainers.image.description="Stable Diffusion jobs from RunPod, made by diffusers" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision=${REVISION} \
      org.opencontainers.image.version=${VERSION}

# --- A1111's image: the last stage, so that `docker build .` and RunPod's Hub build it --------------

FROM a1111-system AS a1111-app
WORKDIR /app
COPY benchmarks benchmarks
COPY templates.json test_input.json ./
COPY image/entrypoint.sh image/healthcheck.sh image/torch_build.py image/
COPY handler.py model_manager.py runpod_sdk.py start.sh ./
COPY gateway gateway
COPY worker worker
RUN python3.10 -m compileall -q -j 0 .

FROM a1111-python AS a1111
COPY --from=worker-python /opt/worker /opt/worker
COPY --from=clip-tokenizer /opt/huggingface /opt/huggingface
COPY --from=a1111-source --chown=worker:worker /src/webui /stable-diffusion-webui
COPY image/smoke_a1111.py /build/
ENV BAKED_MODELS_DIR=/app/models \
    ENGINE=a1111 \
    GIT_PYTHON_REFRESH=quiet \
    GRADIO_ANALYTICS_ENABLED=False \
    HF_HOME=/opt/huggingface \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all \
    PORT=7860 \
    RUN_DIR=/tmp/worker \
    WEBUI_DIR=/stable-diffusion-webui \
    WEBUI_PYTHON=/opt/a1111/bin/python \
    YOLO_AUTOINSTALL=false \
    YOLO_CONFIG_DIR=/tmp/ultralytics \
    YOLO_OFFLINE=true
ARG WITH_CONTROLNET=1
ARG WITH_ADETAILER=1
# As the worker's user, because A1111 creates folders here.
WORKDIR /stable-diffusion-webui
RUN install -d -o worker -g worker /models \
 && setpriv --reuid=worker --regid=worker --clear-groups "$WEBUI_PYTHON" /build/smoke_a1111.py \
    "controlnet=$WITH_CONTROLNET" "adetailer=$WITH_ADETAILER"
WORKDIR /app
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=10m CMD ["/app/image/healthcheck.sh"]
ENTRYPOINT ["/app/image/entrypoint.sh"]
COPY --from=models /app/models models
COPY --from=a1111-app /app /app
RUN "$PYTHON" -c "import handler" \
 && setpriv --reuid=worker --regid=worker --clear-groups "$PYTHON" model_manager.py prepare-engine
ARG REVISION=unknown
ARG VERSION=unknown
# For the report of benchmarks/gpu.py.
ENV REVISION=${REVISION}
LABEL org.opencontainers.image.title="A1111 worker" \
      org.opencontainers.image.description="Stable Diffusion jobs from RunPod, made by A1111 v1.9.3" \
      org.opencontainers.image.licenses="MIT AND AGPL-3.0-only AND GPL-3.0-only" \
      org.opencontainers.image.revision=${REVISION} \
      org.opencontainers.image.version=${VERSION}
