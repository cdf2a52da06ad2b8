#!/bin/bash
#SBATCH --job-name=jaxpg
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append

# TERM reaches the tasks three minutes before the time is up: they save and exit with 75.
srun --kill-on-bad-exit=0 jaxpg train vpg --seeds 10000 --out "$SCRATCH/jaxpg/big" --distributed
code=$?

case $code in
  75 | 76) scontrol requeue "$SLURM_JOB_ID" ;; # stopped, or hung: go on where it was
esac
exit $code
