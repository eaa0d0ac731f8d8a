#!/usr/bin/env bash
# A smaller card, emulated on a larger one: the VRAM budget is that of the card, and experts come over a link of
# its rate (bench --link-limit paces the copies; docs/gpu.md). Prompts as measured; of answers, which read streamed
# experts in place, over a link that cannot be slowed, the measured time plus what these bytes would take longer
# ("computed").
#
#   bench/small_card.sh BUILD_DIR STORE_DIR [SHAPE LAYERS ALL_LAYERS VRAM...]
#
# SHAPE: of moraine bench make-store; LAYERS of it are made (0: all). Default: qwen3-30b-a3b 0 48 16GiB 12GiB 8GiB.
# LINK (GB/s, 25: PCIe 4 x16 as it is usually measured), TOKENS (8192). A store that exists is taken as it is.
set -uo pipefail
build=$1 store=$2
shape=${3:-qwen3-30b-a3b} layers=${4:-0} all_layers=${5:-48}
shift $(($# < 5 ? $# : 5))
budgets=${*:-16GiB 12GiB 8GiB}
link=${LINK:-25} tokens=${TOKENS:-8192}
moraine=$build/moraine
failed=0

if [[ ! -e $store/STORE_FORMAT ]]; then
  some=(); ((layers > 0)) && some=(--layers "$layers")
  "$moraine" bench make-store "$store" --shape "$shape" "${some[@]}" --exact --quiet || exit 1
fi
common=(--gpu --no-tuned --json)
for vram in $budgets; do
  prefill=$("$moraine" bench prefill "$store" "${common[@]}" --vram-budget "$vram" --link-limit "${link}GB/s" \
    --prompt-tokens "$tokens" --prefill-chunk "$tokens" --max-context $((tokens + 64)) --rounds "${ROUNDS:-3}") || failed=1
  decode=$("$moraine" bench decode "$store" "${common[@]}" --vram-budget "$vram" \
    --prompt-tokens 64 --tokens 32 --warm-tokens 8 --prefill-chunk 512 --max-context 1024 --rounds 2) || failed=1
  python3 - "$shape" "$all_layers" "$link" "$vram" "$prefill" "$decode" << 'PYTHON' || failed=1
import json, sys
shape, all_layers, link, vram = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
prefill, decode = json.loads(sys.argv[5]), json.loads(sys.argv[6])
layers = prefill["resident_layers"] + prefill["streamed_layers"]
# A token reads top-k records of each streamed layer.
read = decode["streamed_bytes_per_token"]
here_s = 1 / decode["tok_per_s"]
there_s = here_s + read * (1 / (link * 1e9) - 1 / (decode["link_gb_per_s"] * 1e9))
print(json.dumps({
    "shape": shape, "layers": layers, "of_layers": all_layers, "vram": vram,
    "vram_bytes": prefill["vram_bytes"], "streamed_layers": prefill["streamed_layers"],
    "link_gb_per_s": round(prefill["link_gb_per_s"], 2),
    "prefill_tok_per_s": round(prefill["tok_per_s"], 1),
    "prefill_fraction_of_link": prefill.get("fraction_of_link"),
    "decode_streamed_layers": decode["streamed_layers"],
    "decode_tok_per_s_at_%.1f_gb_per_s" % decode["link_gb_per_s"]: round(decode["tok_per_s"], 2),
    "decode_tok_per_s_computed": round(1 / there_s, 2),
    # Layers are alike, and those that were not made are streamed as these are.
    "prefill_tok_per_s_all_layers": round(prefill["tok_per_s"] * layers / all_layers, 1),
    "decode_tok_per_s_all_layers_computed": round(1 / there_s * layers / all_layers, 2)}))
PYTHON
done
exit $failed
