#!/usr/bin/env bash
# A job on plain machines that share a disk:
#   HOSTS="a b c d" REPO=/shared/perturb-dissect launch/pods/ssh.sh --images=/shared/photos --model=... --out=/shared/run1
# Each machine does its share; one that was asked to stop (75), killed or lost is started again up to
# TRIES times.
set -uo pipefail
: "${HOSTS:?}" "${REPO:?}"
read -ra machines <<<"$HOSTS"
arguments=$(printf '%q ' "$@")

share() {
  local k=$1 host=$2 code=1
  for _ in $(seq "${TRIES:-5}"); do
    ssh -o BatchMode=yes "$host" \
      "cd '$REPO' && exec '${VENV:-.venv}/bin/python' -m launch.masks --shard=$k/${#machines[@]} $arguments" 2>&1 |
      sed -u "s/^/$host: /"
    code=${PIPESTATUS[0]}
    # 128 and more: ended by a signal; 255: the connection.
    [ "$code" -eq 75 ] || [ "$code" -ge 128 ] || return "$code"
    sleep 5
  done
  return "$code"
}

pids=()
for k in "${!machines[@]}"; do
  share "$k" "${machines[$k]}" &
  pids+=($!)
done
worst=0
for pid in "${pids[@]}"; do
  wait "$pid" || worst=$?
done
exit "$worst"
