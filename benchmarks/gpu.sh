#!/usr/bin/env bash
# What is to be known of a GPU machine, in two parts of at most six minutes each:
#
#     bash benchmarks/gpu.sh tests OUT [CHECKOUT]    gpu tests, gradient steps, replay
#     bash benchmarks/gpu.sh train OUT               a training in Brax, critics, flow kernels, PPO
#
# OUT gets logs and, in OUT/rows, rows as `supple bench` writes them; CHECKOUT is the official
# FlashSAC to time in between. What has to be compiled is compiled first, side by side; then each
# timing has the GPU to itself. A part that takes too long ends alone.
set -u
cd "$(dirname "$0")/.."
what=$1 out=$(mkdir -p "$2" && cd "$2" && pwd) checkout=${3:-}
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=2 MUJOCO_GL=${MUJOCO_GL:-disable} COLUMNS=160
size=(--sizes 310x37 --batch-sizes 2048)

within() { # SECONDS NAME COMMAND...: its output goes to a log, its end to the screen
  local seconds=$1 name=$2; shift 2
  timeout -s INT -k 20 "$seconds" "$@" >"$out/$name.log" 2>&1
  echo "== $name: exit status $?, after $SECONDS s" && tail -n 14 "$out/$name.log" | cut -c1-160
}
bench() { # SECONDS WHAT ARGUMENTS...
  within "$1" "$2" python3 -m supple bench "$2" --device cuda --out "$out/rows" "${@:3}"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
case $what in
tests)
  warm() { # NAME SECONDS ARGUMENTS...
    TORCHINDUCTOR_COMPILE_THREADS=6 within "$2" "$1" python3 -m supple bench update \
      --device cuda "${size[@]}" --rounds 1 --out "$out/$1" "${@:3}"
  }
  if [ "$checkout" ]; then # max-autotune takes minutes, which may not be enough
    warm as-shipped 230 --modes eager --precisions float32 --reference "$checkout" &
    warm less-tuned 200 --modes eager --precisions float32 --reference "$checkout" \
      --reference-compile reduce-overhead &
  fi
  warm ours 200 &
  TORCHINDUCTOR_COMPILE_THREADS=2 within 220 tests python3 -m pytest -q -n 6 -m gpu \
    --require gpu tests/test_cuda.py tests/kernels tests/replay --durations 5 &
  wait
  reference=(${checkout:+--reference "$checkout" --reference-compile off})
  for found in "$out"/{less-tuned/,as-shipped/}bench_update.csv; do
    case $found in *as-shipped*) mode=auto ;; *) mode=reduce-overhead ;; esac
    [ -s "$found" ] && reference=(--reference "$checkout" --reference-compile $mode)
  done
  bench 90 update "${size[@]}" "${reference[@]}"
  bench 40 replay "${size[@]}" --rounds 10
  ;;
train)
  within 140 sac python3 -m supple train brax/ant --preset gpu --device cuda --env-steps 6000000 \
    --eval.every 1000000 --eval.no-video --checkpoint.keep-replay 0 --compute.cuda-graphs \
    --run-dir "$out/sac"
  bench 60 critics --sizes 17x6 --modes graphs --rounds 10
  bench 100 kernels --rounds 10
  bench 50 ppo --sizes 48x12 --rounds 10
  ;;
esac
