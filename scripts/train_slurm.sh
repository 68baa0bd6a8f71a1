#!/usr/bin/env bash
#SBATCH --job-name=restormer
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --signal=USR1@60
# Train under Slurm, one task per GPU, from the root of the repository. Flags of sbatch override the settings above:
#
#   sbatch scripts/train_slurm.sh OPTION_FILE [more arguments of basicsr/train.py]
#   sbatch --nodes=2 --partition=gpu scripts/train_slurm.sh options/Deblurring_Restormer.yml
#
# A job that Slurm requeues resumes from its newest training state. A minute before the time limit the run saves its
# state and ends: submit it again with --auto_resume. PYTHON is the interpreter (default: python). If one task dies, all
# are stopped.
set -euo pipefail

if (($# < 1)); then
    echo "usage: sbatch $0 OPTION_FILE [more arguments of basicsr/train.py]" >&2
    exit 2
fi
options=$1
shift
resume=()
if ((${SLURM_RESTART_COUNT:-0})); then
    resume=(--auto_resume)
fi
# Since Slurm 22.05, srun does not inherit this from sbatch.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-8}
# Slurm runs a copy of this script, so find the repository by the folder that sbatch was called in.
exec srun --kill-on-bad-exit=1 "${PYTHON:-python}" "${SLURM_SUBMIT_DIR:-.}/basicsr/train.py" \
    -opt "$options" --launcher slurm ${resume[@]+"${resume[@]}"} "$@"
