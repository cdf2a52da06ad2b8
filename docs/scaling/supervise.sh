#!/bin/bash
# supervise.sh COMMAND…: run it again for as long as it asks for that, or was killed.
# MAX_RESTARTS (100) and RESTART_SECONDS (10) may be set. TERM stops it and what it runs.
set -u
child=
stopping=
stop() {
  stopping=1
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT
restarts=0
while true; do
  "$@" &
  child=$!
  [ -z "$stopping" ] || stop # it came before the child was known
  wait "$child"
  code=$?
  if [ -n "$stopping" ]; then
    [ $code -le 128 ] || { wait "$child"; code=$?; } # the signal ended the wait, not the child
    exit $code
  fi
  case $code in
    75 | 76 | 134 | 137 | 143) ;; # stopped; hung; aborted; killed; stopped as it began
    *) exit $code ;;        # 0: finished. 2: something is wrong, and would be again
  esac
  child=
  restarts=$((restarts + 1))
  if [ "$restarts" -gt "${MAX_RESTARTS:-100}" ]; then
    exit $code
  fi
  echo "supervise: exit $code, restart $restarts" >&2
  sleep "${RESTART_SECONDS:-10}"
  [ -z "$stopping" ] || exit $code
done
