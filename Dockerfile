# One image for every part: the worker, the migration and the command line.
#   docker build -t tidemill .
# with the CUDA build of torch; for the CPU build add
#   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cu126
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 HF_HOME=/models

RUN useradd --create-home --uid 10001 tidemill && mkdir /models && chown tidemill /models
WORKDIR /app
RUN pip install --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple "torch>=2.6"
COPY pyproject.toml README.md LICENSE ./
COPY cli cli
COPY db db
COPY engine engine
COPY tasks tasks
COPY worker worker
RUN pip install ".[engine,files]"

USER tidemill
WORKDIR /home/tidemill
ENTRYPOINT ["tidemill"]
CMD ["worker"]
