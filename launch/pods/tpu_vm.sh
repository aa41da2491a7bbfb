#!/usr/bin/env bash
# A job on a Cloud TPU slice: every worker runs the same command and finds its place by itself.
#   NAME=masks ZONE=us-east5-b TYPE=v5litepod-16 OUT=/mnt/shared/run1 launch/pods/tpu_vm.sh --images=... --model=...
# OUT and the images lie on a disk that all workers mount (Filestore, or a gcsfuse mount).
# The same command again continues a run that was stopped or preempted.
set -euo pipefail
: "${NAME:?}" "${ZONE:?}" "${TYPE:?}" "${OUT:?}"
VERSION="${VERSION:-v2-alpha-tpuv5-lite}"

gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" >/dev/null 2>&1 ||
  gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" \
    --version="$VERSION" --spot

gcloud compute tpus tpu-vm scp --recurse --zone="$ZONE" --worker=all . "$NAME":perturb-dissect
ARGUMENTS=$(printf '%q ' --multiprocess --out="$OUT" "$@")
gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="
  set -e; cd perturb-dissect
  python3 -m venv ~/.masks && . ~/.masks/bin/activate
  pip install --quiet -r requirements.txt 'jax[tpu]<0.13'
  exec python -m launch.masks $ARGUMENTS"
