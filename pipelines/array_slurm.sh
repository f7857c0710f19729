#!/bin/sh
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --requeue
# In an array 1-$SHARES, each job does its share of the images. A single job does all that is left, and writes the
# tables of all.
# Slurm's own count of the jobs is that of one submission: 1 for --array=3.
tilenet batch "$@" \
  ${SLURM_ARRAY_TASK_ID:+--shard "$SLURM_ARRAY_TASK_ID/${SHARES:?say how many there are: export SHARES=8}"}
