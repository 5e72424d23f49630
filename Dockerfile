# syntax=docker/dockerfile:1
# Two images: `production` is all that Airflow's components need, `demo` adds the made-up Medlock and the Medflex sandbox.
# The slim base has Airflow and nothing else, so that the lock below decides about every package. Another base needs
# Python 3.11, pip 24.1 or newer (older ones want a hash for each of a package's extras, too), bash, curl and a user 50000
# with a home of its own.
ARG BASE_IMAGE=apache/airflow:slim-3.3.2-python3.11

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS production
SHELL ["/bin/bash", "-o", "pipefail", "-e", "-u", "-c"]
USER 50000:0
WORKDIR /opt/airflow
COPY --chown=50000:0 requirements-deploy.txt /opt/airflow/
# Wheels only: nothing is built here, and nothing runs at installation.
RUN pip install --no-cache-dir --require-hashes --only-binary :all: --requirement requirements-deploy.txt
COPY --chown=50000:0 dags/ /opt/airflow/dags/
COPY --chown=50000:0 plugins/ /opt/airflow/plugins/
COPY --chown=50000:0 include/ /opt/airflow/include/
COPY --chown=50000:0 deploy/storage/ /opt/airflow/deploy/storage/
# Without its bytecode each task's process would compile all that it imports anew.
ENV PYTHONDONTWRITEBYTECODE="" \
    PYTHONPATH=/opt/airflow/plugins \
    AIRFLOW_HOME=/opt/airflow \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/airflow/dags \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/airflow/plugins \
    AIRFLOW__CORE__LOAD_EXAMPLES=False
RUN python -m compileall -q dags plugins && mkdir -p logs

FROM production AS demo
COPY --chown=50000:0 requirements-deploy-demo.txt /opt/airflow/
RUN pip install --no-cache-dir --require-hashes --only-binary :all: --requirement requirements-deploy-demo.txt
COPY --chown=50000:0 sandbox/ /opt/airflow/sandbox/
ENV PYTHONPATH=/opt/airflow/plugins:/opt/airflow
# A volume that is mounted here takes this folder's owner.
RUN python -m compileall -q sandbox && mkdir -p medflex-store
