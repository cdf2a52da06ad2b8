#!/bin/bash
#SBATCH --job-name=jaxpg
#SBATCH --array=0-9
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append

# Without Ray: a thousand seeds for each job of the array, and a run of its own.
first=$((SLURM_ARRAY_TASK_ID * 1000))
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  jaxpg train vpg --seeds "$first:$((first + 1000))" --out "$SCRATCH/jaxpg/$SLURM_ARRAY_TASK_ID"
code=$?
case $code in
  75 | 76 | 143) scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" ;; # go on where it was
esac
exit $code
