#!/usr/bin/env bash
# Train on the GPUs of one or more nodes.
#
#   scripts/train_dist.sh GPUS OPTION_FILE [more arguments of basicsr/train.py]
#   scripts/train_dist.sh 8 options/Deblurring_Restormer.yml --auto_resume
#
# On two nodes, run it on each, with the number of the node in NODE_RANK:
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first.host scripts/train_dist.sh 8 options/Deblurring_Restormer.yml
#
# PYTHON is the interpreter (default: python). If one process dies, all are stopped.
set -euo pipefail

if (($# < 2)) || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 GPUS OPTION_FILE [more arguments of basicsr/train.py]" >&2
    exit 2
fi
gpus=$1 options=$2
shift 2
train=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/basicsr/train.py

if [[ ${NNODES:-1} == 1 ]]; then
    nodes=(--standalone)
else
    : "${NODE_RANK:?is required if NNODES is more than 1}" "${MASTER_ADDR:?is required if NNODES is more than 1}"
    nodes=(--nnodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}")
fi
exec "${PYTHON:-python}" -m torch.distributed.run "${nodes[@]}" --nproc_per_node "$gpus" \
    "$train" -opt "$options" --launcher pytorch "$@"
