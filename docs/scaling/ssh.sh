#!/bin/bash
# HOSTS="node1 node2" ssh.sh jaxpg train …: train on these machines and this one, which writes.
set -u
address="$(hostname -I | cut -d' ' -f1):6379"
leave() {
  for host in $HOSTS; do ssh "$host" ray stop; done
  ray stop
}
trap leave EXIT
ray start --head --port=6379 || exit
for host in $HOSTS; do ssh "$host" ray start --address="$address" || exit; done
trap 'kill -TERM $!' TERM INT # $! is the training from the moment at which it begins
"$@" --cluster "$address" &
training=$!
wait $training
code=$?
[ $code -le 128 ] || { wait $training; code=$?; } # the signal ended the wait, not the training
exit $code
