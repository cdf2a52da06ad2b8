#!/bin/bash
#SBATCH --job-name=jaxpg
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append

# This script runs on the first node, which is one of the cluster's and writes.
address="$(hostname -I | cut -d' ' -f1):6379"
ray start --head --port=6379 --num-cpus="$SLURM_CPUS_PER_TASK" || exit
others=$((SLURM_NNODES - 1))
srun --nodes=$others --ntasks=$others --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  --exclude="$SLURMD_NODENAME" \
  ray start --address="$address" --num-cpus="$SLURM_CPUS_PER_TASK" --block &

# TERM reaches this script three minutes before the time is up: the run is saved, and exits with 75.
trap 'kill -TERM $!' TERM # $! is the training from the moment at which it begins
jaxpg train vpg --seeds 10000 --out "$SCRATCH/jaxpg/big" --cluster "$address" &
training=$!
wait $training
code=$?
[ $code -le 128 ] || { wait $training; code=$?; } # TERM ended the wait, not the training
ray stop
case $code in
  75 | 76 | 143) scontrol requeue "$SLURM_JOB_ID" ;; # stopped (143: as it began), or hung: go on where it was
esac
exit $code
