# A server for one artefact: `docker build -t detector .`, then
# `docker run --read-only --tmpfs /tmp -p 8000:8000 -v "$PWD/ARTEFACT:/artefact:ro" detector`.
FROM python:3.12-slim

# OpenCV without a window system needs no more than this; torch is not installed: an artefact runs without it.
WORKDIR /app
COPY pyproject.toml setup.py README.md LICENSE requirements-serve.txt ./
COPY src src
RUN pip install --no-cache-dir -r requirements-serve.txt \
    && pip install --no-cache-dir --no-deps . \
    && useradd --system --no-create-home server

USER server
EXPOSE 8000
HEALTHCHECK --start-period=30s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["directdet", "serve"]
CMD ["/artefact", "--host", "0.0.0.0"]
