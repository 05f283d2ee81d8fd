#!/bin/bash
#SBATCH --job-name=directdet
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
# A recipe on COCO from the first step to the table, as a Slurm job:
#
#     sbatch --export=ALL,DATA=/data/coco,RUN=/runs/p1x scripts/slurm_coco.sh
#     sbatch --nodes=2 --gpus-per-node=4 --export=ALL,DATA=/data/coco,RUN=/runs/p1x,GPUS=4 scripts/slurm_coco.sh
#
# DATA and RUN are folders that all machines see; RECIPE is another recipe than mask_rcnn_r50_fpn, GPUS the number on each
# machine, 8 unless given. directdet and torchrun have to be on the PATH of the jobs.
#
# Five minutes before the time is up, and where the job is preempted, Slurm sends SIGTERM: the run saves and stops. The
# job is then put into the queue again, and goes on where it stopped. A job that failed is not.
set -eu
: "${DATA:?is not set: the folder of COCO}" "${RUN:?is not set: the folder of the run}"
RECIPE=${RECIPE:-mask_rcnn_r50_fpn} GPUS=${GPUS:-8} NODES=${SLURM_NNODES:-1}

again=
for begun in "$RUN"/*/run.json; do
    if [ -e "$begun" ]; then again=--resume; fi
done

# torchrun waits for as long as --shutdown-timeout says until the run has saved; then it kills it.
main=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
ended=0
srun --kill-on-bad-exit=1 torchrun --nnodes "$NODES" --nproc-per-node "$GPUS" \
    --rdzv-backend c10d --rdzv-endpoint "$main:29500" --rdzv-id "$SLURM_JOB_ID" --shutdown-timeout 240 \
    -m directdet train "$RECIPE" --data "$DATA" --out "$RUN" $again || ended=$?
if [ $ended -ne 0 ]; then
    if [ -n "${SLURM_JOB_END_TIME:-}" ] && [ "$(date +%s)" -ge $((SLURM_JOB_END_TIME - 300)) ]; then
        scontrol requeue "$SLURM_JOB_ID"
        exit 0
    fi
    exit $ended
fi

# The rest takes one GPU.
directdet eval "$RUN" --per-class --json "$RUN/metrics.json" --results "$RUN/detections.json" --report "$RUN/report"
directdet export "$RUN" --out "$RUN/artefact"
directdet benchmark "$RUN" "$RUN/artefact" --data "$DATA" --out "$RUN/benchmark"
if [ -f "$DATA/annotations/image_info_test-dev2017.json" ]; then
    directdet submit "$RUN" --data "$DATA" --to coco --out "$RUN/submission" --name directdet
fi
