#!/usr/bin/env bash
# All that waits for an accelerator, in three calls of at most nine minutes each:
#
#   benchmarks/gpu.sh 1          parity with the CPU; DeiT-S in bfloat16 at batch 256: dense, timm, every method; training steps
#   benchmarks/gpu.sh 2          the same throughput at the fastest batch and at batch 1
#   benchmarks/gpu.sh 3          the study at scale small, as far as the time goes
#   benchmarks/gpu.sh 1 --tiny   a dry run of a call in miniature, on any machine
#   benchmarks/gpu.sh 1 --print  the commands of a call
#
# A call begins nothing new when its time is over and ends what is running; the same call again goes on where that one
# stopped. Files come whole or not at all, into results/gpu. Exit status 0: the call has nothing left to do; 1: it has,
# or something failed, which the last lines name.
#
# Environment: PYTHON (python3), OUT (results/gpu), MINUTES (9), PEAK_TFLOPS (the maker's; else what a large product of
# matrices reaches), DATA (folder of Fashion-MNIST's files; else where the package index of Debian puts them).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
call=${1:-} how=${2:-}
case "$call$how" in [123] | [123]--tiny | [123]--print) ;; *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2 ;; esac
python=${PYTHON:-python3} out=${OUT:-results/gpu} peak=${PEAK_TFLOPS:-measured}
deadline=$((SECONDS + ${MINUTES:-9} * 60)) unfinished=()
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/slimvit_jax/xla}
[ "$how" = --print ] || mkdir -p "$out" || exit 2

speed=(-m benchmarks.throughput --dtypes bfloat16 --keep-rates 0.7 --timm --peak-tflops "$peak" --resume)
methods=all large=256 fastest=fastest training=128 shape=(--models deit_small_patch16_224 --compile)
study=(--config=configs/study_fashion_small.py ${DATA:+"--config.data.data_dir=$DATA"})
if [ "$how" = --tiny ]; then
  methods=life_regression large=3 fastest=1 training=2
  options='{"img_size": 16, "patch_size": 4, "embed_dim": 24, "num_heads": 2, "num_classes": 10}'
  shape=(--models deit_tiny_patch16_224 --model-options "$options" --rounds 2 --min-seconds 0 --pause 0)
  study=(--config=configs/study_fashion_small.py --only=untuned/topk/0.5/seed0)
  study+=(--config.data.name=digits --config.model.options.img_size=8 --config.model.options.embed_dim=12)
  study+=(--config.model.options.num_heads=2 --config.data.num_workers=0 --config.data.batch_size=64)
  study+=(--config.eval.batch_size=90 --config.stages.dense.epochs=0.1)
fi

part() { # NAME COMMAND...: runs it within what is left of the call
  local name=$1 left=$((deadline - SECONDS)) status
  shift
  if [ "$how" = --print ]; then
    printf '%q ' "$python" "$@"
    echo
    return
  fi
  if [ "$left" -lt 5 ]; then
    unfinished+=("$name: no time left")
    return
  fi
  echo "== $name ($left s left)"
  timeout --signal=TERM --kill-after=10 "$left" "$python" "$@"
  status=$?
  case $status in
    0) ;;
    124 | 137 | 143) unfinished+=("$name: stopped when the time was over") ;;
    *) unfinished+=("$name: exit status $status") ;;
  esac
}

case $call in
  1)
    [ -e "$out/parity.json" ] || part parity -m benchmarks.parity --methods "$methods" --output "$out/parity.json"
    part "throughput, batch $large" "${speed[@]}" "${shape[@]}" --methods "$methods" --batch-sizes "$large" \
      --json "$out/throughput.json"
    part "training steps" "${speed[@]}" "${shape[@]}" --training-only --keep-rates 0.5 --training-batch "$training" \
      --json "$out/throughput.json"
    ;;
  2)
    part "throughput, fastest and 1" "${speed[@]}" "${shape[@]}" --methods "$methods" --batch-sizes "$fastest,1" \
      --json "$out/throughput.json"
    ;;
  3)
    # the study saves its state when it is told to stop, for which half a minute is left
    deadline=$((deadline - 30))
    part "the study at scale small" -m benchmarks.study "${study[@]}" --workdir "$out/study_small"
    ;;
esac
[ "$how" = --print ] && exit 0
[ ${#unfinished[@]} -eq 0 ] && echo "call $call is complete: $out" && exit 0
printf 'unfinished: %s\n' "${unfinished[@]}"
echo "the same call again goes on with it"
exit 1
