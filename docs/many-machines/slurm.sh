#!/bin/bash
# One run of a list for each element of the array. Make the list and submit it:
#   sdlora compare --suite paper --records records/ --list > runs.txt
#   sbatch --array=1-"$(wc -l < runs.txt)"%20 slurm.sh
# Adjust memory, cores and time to your model; what a time limit stops goes on when the list is made and
# submitted again.
#SBATCH --job-name=sdlora
#SBATCH --array=1-1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --output=slurm-%A_%a.out

set -euo pipefail

list=${SDLORA_LIST:-runs.txt}
line=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$list")
if [ -z "$line" ]; then
    echo "$list has no line ${SLURM_ARRAY_TASK_ID}" >&2
    exit 2
fi

export RAYON_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# `exec`, so that the signal before the time limit reaches the run, which then saves.
srun --ntasks=1 sh -c "exec $line"
