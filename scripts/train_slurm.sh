#!/usr/bin/env bash
#SBATCH --job-name=restormer
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --requeue
# Trains under Slurm, one task for each GPU, from the root of the repository; sbatch's own flags change what stands
# above:
#
#   sbatch scripts/train_slurm.sh OPTION_FILE [more arguments of basicsr/train.py]
#   sbatch --nodes=2 --partition=gpu scripts/train_slurm.sh options/Deblurring_Restormer.yml
#
# A job that Slurm stops and starts again goes on where its newest state was saved. PYTHON is the interpreter
# (default: python). One task that dies ends all.
set -euo pipefail

if (($# < 1)); then
    echo "usage: sbatch $0 OPTION_FILE [more arguments of basicsr/train.py]" >&2
    exit 2
fi
options=$1
shift
again=()
if ((${SLURM_RESTART_COUNT:-0})); then
    again=(--auto_resume)
fi
# srun does not take this over from sbatch since Slurm 22.05.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-8}
# Slurm runs a copy of this script: the repository is where sbatch was called.
exec srun --kill-on-bad-exit=1 "${PYTHON:-python}" "${SLURM_SUBMIT_DIR:-.}/basicsr/train.py" \
    -opt "$options" --launcher slurm ${again[@]+"${again[@]}"} "$@"
