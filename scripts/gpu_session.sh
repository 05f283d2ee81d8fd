#!/bin/bash
# What the GPU figures of the README need, in one quarter of an hour of a GPU; partial results count, nothing asks back.
#
#     scripts/gpu_session.sh PENN_FUDAN VOC OUT
#
# PENN_FUDAN and VOC are dataset folders (train and val). directdet must be importable by `python3`; timing needs an
# onnxruntime-gpu. Training comes first, side by side where times do not matter; timing follows, alone on the GPU; then
# what time is left for. OUT/marks says when each part ended, OUT/*.log what it said, OUT/results holds the comparisons.
# To try it on a CPU: SCALE=smoke DEVICE=cpu STEPS=3 BATCH=2 SHORTEN=0.08 PRECISIONS=fp32 LANDSCAPE=small.
set -u
here=$(cd "$(dirname "$0")" && pwd) data=$(realpath "$1") voc=$(realpath "$2")
mkdir -p "$3" && cd "$3" || exit 1
ln -sfn "$data" penn-fudan && ln -sfn "$voc" voc  # results name the data as it is named here
scale=${SCALE:-medium} device=${DEVICE:-cuda} steps=${STEPS:-300} batch=${BATCH:-32} precisions=${PRECISIONS:-tf32 fp16}
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=4 TORCHINDUCTOR_CACHE_DIR=$PWD/compiled
directdet=(python3 -m directdet)
evidence=(python3 "$here/gpu_evidence.py" --data penn-fudan --out runs --scale "$scale" --device "$device" --copy-to results)
started=$(date +%s)
mark() { echo "$(($(date +%s) - started)) s: $1" >> marks; }

mask=runs/direct_scratch/direct retinanet=runs/direct_table8/retinanet_direct ssd=runs/scratchdet_table1/both_lr05

artefacts() { # NAME RUN: fp32 and fp16, and the compiler's cache filled
    for precision in fp32 fp16; do
        "${directdet[@]}" export "$2" --out "$1_$precision" --precision $precision > "export_$1_$precision.log" 2>&1
    done
    timeout 200 "${directdet[@]}" benchmark "$2" --data penn-fudan --device "$device" --runtime torch --compile \
        --precision "${precisions%% *}" --iterations 2 --warmup 1 --ap-images 0 > "compile_$1.log" 2>&1
    mark "exported $1"
}

measure() { # OUT MODEL... OPTION...: on a GPU with nobody else
    local out=$1
    shift
    timeout 200 "${directdet[@]}" benchmark "$@" --data penn-fudan --device "$device" --iterations 100 --warmup 15 \
        --out "$out" > "$out.log" 2>&1
    mark "$out"
}

# Equal time: alone, so that a row is not slowed by another comparison.
"${evidence[@]}" --comparisons direct/scratch --shorten "${SHORTEN:-0.26}" --slice 280 > scratch.log 2>&1
mark direct/scratch

"${evidence[@]}" --comparisons scratchdet/table1 --steps "$steps" --ssd-batch "$batch" --slice 330 > table1.log 2>&1 &
table1=$!
artefacts mask "$mask" &
mask_ready=$!
"${directdet[@]}" reproduce direct/table8 --data penn-fudan --out runs/direct_table8 --budget 1m --rows retinanet_direct \
    --scale "$scale" --device "$device" > table8.log 2>&1
artefacts retinanet "$retinanet" &
retinanet_ready=$!
wait $table1
mark scratchdet/table1
artefacts ssd "$ssd"
wait $mask_ready $retinanet_ready

asked=()
for precision in $precisions; do asked+=(--precision "$precision"); done
for name in ssd retinanet mask; do
    measure "benchmark_$name" "${!name}" "${name}_fp32" "${name}_fp16" --runtime torch --runtime onnxruntime "${asked[@]}"
done
"${evidence[@]}" --comparisons direct/table7 --slice 200 > table7.log 2>&1
mark direct/table7
for name in ssd retinanet mask; do
    measure "compiled_$name" "${!name}" --runtime torch --compile --precision "${precisions%% *}" --ap-images 0
done
"${directdet[@]}" plan mask_rcnn_r50_fpn --memory 40GB --lengths 448,640 --batches 8 --measure --json plan.json > plan.log 2>&1
mark plan

"${evidence[@]}" --comparisons scratchdet/table2 --steps "$steps" --ssd-batch "$batch" --slice 400 > table2.log 2>&1 &
"${directdet[@]}" landscape --data voc --out landscape --size "${LANDSCAPE:-paper}" --steps 60 --device "$device" > landscape.log 2>&1
mark landscape
wait
mark scratchdet/table2
