# BIDS App: docker run --rm --network none -v BIDS:/bids:ro -v OUT:/out brainuad /bids /out participant
# No network is needed when it runs: the model and the weights of brain extraction are inside.
FROM python:3.12-slim-bookworm AS build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY src src
# PyTorch's own index has its wheel without the gigabytes of CUDA; the version is that of constraints.txt.
RUN python -m venv /opt/brainuad \
 && torch="$(grep '^torch==' constraints.txt)" \
 && /opt/brainuad/bin/pip install --no-cache-dir --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch" \
 && /opt/brainuad/bin/pip install --no-cache-dir -c constraints.txt .

FROM python:3.12-slim-bookworm
LABEL org.opencontainers.image.title="brainuad" \
      org.opencontainers.image.description="Unsupervised anomaly detection in brain MRI; research use only" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --create-home --uid 1000 brainuad
COPY --from=build /opt/brainuad /opt/brainuad
COPY docker/bids_app.py /opt/bids_app.py
# Whoever runs it (docker run -u, Apptainer) may have no home folder: caches go to /tmp.
ENV PATH="/opt/brainuad/bin:$PATH" \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 1000
WORKDIR /tmp
ENTRYPOINT ["python", "/opt/bids_app.py"]
CMD ["--help"]
