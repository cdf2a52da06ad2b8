#!/bin/bash
# tpu.sh POD jaxpg train …: train on all workers of a TPU pod slice; its first one writes.
set -u
pod=$1
shift
on() { gcloud compute tpus tpu-vm ssh "$pod" --worker="$1" --command "$2"; }
address="$(on 0 "hostname -I" | cut -d' ' -f1):6379"
trap 'on all "ray stop"' EXIT
on 0 "ray start --head --port=6379" || exit
for worker in $(seq 1 $((WORKERS - 1))); do
  on "$worker" "ray start --address=$address" || exit
done
on 0 "$* --cluster $address"
