#!/usr/bin/env bash
# All tests, from a fresh clone: release, then ASan+UBSan and TSan over residency, I/O, store, engine and
# server, then each fuzz target for a few seconds, then the CUDA kernels if there is a GPU.
# MORAINE_TEST_STAGES=release,asan,tsan,fuzz,gpu selects.
set -euo pipefail
cd "$(dirname "$0")"

scripts/install-dependencies.sh
stages=",${MORAINE_TEST_STAGES:-release,asan,tsan,fuzz},"
fuzz_seconds=${MORAINE_FUZZ_SECONDS:-10}
jobs=$(($(nproc) < 4 ? $(nproc) : 4))  # most tests use one or two threads
summary=()

stage() { echo; echo "=== $*"; }

if [[ $stages == *,release,* ]]; then
  stage "release: all tests"
  cmake --preset release >/dev/null
  cmake --build build/release
  ctest --preset release --parallel "$jobs"
  summary+=("release: passed")
fi

for sanitizer in asan tsan; do
  [[ $stages == *,$sanitizer,* ]] || continue
  stage "$sanitizer: residency, I/O, store, engine, server"
  cmake --preset "$sanitizer" >/dev/null
  cmake --build "build/$sanitizer" --target "tests_$sanitizer"
  ctest --preset "$sanitizer" -L "$sanitizer" --parallel "$jobs"
  summary+=("$sanitizer: passed")
done

if [[ $stages == *,fuzz,* ]]; then
  stage "fuzz: each target for $fuzz_seconds s"
  cmake --preset fuzz >/dev/null
  cmake --build build/fuzz --target fuzzers
  for target in build/fuzz/*_fuzz; do
    name=$(basename "$target")
    scratch=build/fuzz/corpus/$name
    mkdir -p "$scratch"
    "$target" -max_total_time="$fuzz_seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=0 \
      "$scratch" "tests/fuzz/corpus/$name" 2>&1 | tail -n 1
  done
  summary+=("fuzz: passed")
fi

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }
if [[ $stages == *,gpu,* ]] || { [[ -z ${MORAINE_TEST_STAGES:-} ]] && has_gpu && command -v nvcc >/dev/null; }; then
  stage "gpu: CUDA kernels (skipped inside where there is no GPU)"
  cmake --preset cuda >/dev/null
  cmake --build build/cuda --target tests_gpu
  ctest --test-dir build/cuda -L gpu --no-tests=error --output-on-failure
  summary+=("gpu: passed")
else
  echo "no GPU and CUDA toolkit: GPU tests skipped; on a machine with both: MORAINE_TEST_STAGES=gpu ./test.sh"
fi
echo
printf '%s\n' "${summary[@]}"
