#!/usr/bin/env bash
# The Qwen3-MoE family on a GPU: tests, compute-sanitizer, then speed on a store of random weights in the
# published shape of Qwen3-30B-A3B (17 GB), resident and streamed, beside transformers in the same run.
#
#   bench/gpu_model.sh BUILD_DIR STORE_DIR [part...]     parts: tests sanitize prefill decode stream peer latent gpus
#
# latent: DeepSeek-V2-Lite, a store of its own beside STORE_DIR (9 GB), prefill, decode and the peer; not by default.
# gpus: on two GPUs beside one; not by default.
#
# Builds nothing. Needs 40 GB of RAM, 20 GB of disk; the peer 61 GB of VRAM. Every part prints JSON lines.
set -uo pipefail
build=$1 store=$2
shift 2
parts=${*:-tests sanitize prefill decode stream peer}
root=$(cd "$(dirname "$0")/.." && pwd)
moraine=$build/moraine
model_test=$build/engine_gpu_model_test
failed=0

stage() { echo; echo "=== $* ($SECONDS s)"; }
need_store() {
  [[ -e $store/STORE_FORMAT ]] ||
    "$moraine" bench make-store "$store" --shape qwen3-30b-a3b --exact --quiet || exit 1
}
bench() { "$moraine" bench "$@" --json || failed=1; }

for part in $parts; do
  stage "$part"
  case $part in
    tests) "$model_test" --gtest_brief=0 || failed=1 ;;
    sanitize)
      for tool in memcheck racecheck; do
        timeout 240 compute-sanitizer --tool "$tool" --error-exitcode 9 "$model_test" \
          --gtest_filter='*CancelledPrompts*:*StreamedIsResident*' 2>&1 | tail -n 8 || failed=1
      done ;;
    prefill)
      need_store
      for tokens in 512 2048 8192; do
        bench prefill "$store" --gpu --prompt-tokens $tokens --max-context 9000 --rounds 5
      done ;;
    decode)
      need_store
      bench decode "$store" --gpu --prompt-tokens 64 --tokens 256 --max-context 9000 --rounds 3
      bench decode "$store" --gpu --prompt-tokens 8192 --tokens 128 --max-context 9000 --rounds 2
      bench decode "$store" --gpu --prompt-tokens 64 --tokens 128 --batch 8 --rounds 2 ;;
    stream)
      need_store
      for budget in 5GiB 8GiB 12GiB; do
        bench prefill "$store" --gpu --vram-budget $budget --prompt-tokens 8192 --prefill-chunk 8192 \
          --max-context 9000 --rounds 3
        bench decode "$store" --gpu --vram-budget $budget --prompt-tokens 64 --tokens 32 \
          --prefill-chunk 512 --max-context 1024 --rounds 2
      done ;;
    latent)
      lite=$store-deepseek-v2-lite
      [[ -e $lite/STORE_FORMAT ]] ||
        "$moraine" bench make-store "$lite" --shape deepseek-v2-lite --exact --quiet || exit 1
      for tokens in 512 2048 8192; do
        bench prefill "$lite" --gpu --prompt-tokens $tokens --max-context 9000 --rounds 5
      done
      bench decode "$lite" --gpu --prompt-tokens 64 --tokens 128 --max-context 9000 --rounds 3
      bench decode "$lite" --gpu --prompt-tokens 8192 --tokens 128 --max-context 9000 --rounds 2
      python3 "$root/bench/peers/transformers_moe.py" --model deepseek-v2-lite || failed=1 ;;
    gpus)
      need_store
      "$build/engine_gpu_stages_test" || failed=1
      for gpus in 0 0,1; do
        for tokens in 8192 16384; do
          bench prefill "$store" --gpu --gpus $gpus --prompt-tokens $tokens --max-context 17000 --rounds 3
        done
        bench decode "$store" --gpu --gpus $gpus --prompt-tokens 64 --tokens 128 --rounds 3
      done ;;
    peer) python3 "$root/bench/peers/transformers_moe.py" || failed=1 ;;
    *) echo "unknown part $part" >&2; exit 2 ;;
  esac
done
exit $failed
