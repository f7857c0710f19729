#!/bin/sh
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --requeue
# In an array, each job does its share of the images. A single job does all that is left, and writes the tables of all.
tilenet batch "$@" ${SLURM_ARRAY_TASK_ID:+--shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"}
