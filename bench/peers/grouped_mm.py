"""torch's grouped_mm with bf16 weights on the shapes of grouped_gemm_bench: what a GPU prefill by
transformers does with the routed experts of one layer.

    python3 grouped_mm.py

Rows are sorted by expert beforehand; routing is uniform, weights and activations are random. Both
layouts of the weights that grouped_mm accepts are timed and the faster one is printed, as a JSON
line: the two products alone, and with silu(gate) * up in between. Medians of 20 after 3 to warm up, by
events.
"""
import json
import statistics

import torch

MODELS = [("DeepSeek-V2-Lite", 2048, 1408, 64, 6), ("Qwen3-30B-A3B", 2048, 768, 128, 8),
          ("Qwen3-Coder-Next", 2048, 512, 512, 10), ("Qwen3-235B-A22B", 4096, 1536, 128, 8)]
grouped_mm = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm


def median_ms(run):
    times = []
    for i in range(23):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def random_weights(experts, rows, cols, transposed):
    """experts x cols x rows, as grouped_mm takes it; transposed: stored with cols contiguous."""
    shape = (experts, rows, cols) if transposed else (experts, cols, rows)
    weights = torch.randn(*shape, device="cuda", dtype=torch.bfloat16).mul_(0.02)
    return weights.transpose(1, 2) if transposed else weights


def measure(hidden, intermediate, experts, top_k, tokens, transposed):
    torch.manual_seed(42)
    chosen = torch.rand(tokens, experts, device="cuda").topk(top_k).indices.flatten()
    offsets = torch.bincount(chosen, minlength=experts).cumsum(0).to(torch.int32)
    x = torch.randn(tokens * top_k, hidden, device="cuda", dtype=torch.bfloat16)
    gate_up = random_weights(experts, 2 * intermediate, hidden, transposed)
    down = random_weights(experts, hidden, intermediate, transposed)
    h = torch.randn(tokens * top_k, intermediate, device="cuda", dtype=torch.bfloat16)

    def products():
        grouped_mm(x, gate_up, offs=offsets)
        grouped_mm(h, down, offs=offsets)

    def whole():
        both = grouped_mm(x, gate_up, offs=offsets)
        gate, up = both.chunk(2, dim=1)
        grouped_mm(torch.nn.functional.silu(gate) * up, down, offs=offsets)

    flops = 6 * tokens * top_k * hidden * intermediate
    return flops / median_ms(products) * 1e-9, flops / median_ms(whole) * 1e-9


if __name__ == "__main__":
    for name, hidden, intermediate, experts, top_k in MODELS:
        for tokens in (2048, 8192):
            results = [measure(hidden, intermediate, experts, top_k, tokens, transposed)
                       for transposed in (True, False)]
            best, with_silu = (max(column) for column in zip(*results))
            print(json.dumps({"peer": "torch grouped_mm bf16 " + torch.__version__, "model": name,
                              "tokens": tokens, "tflops": round(best, 1),
                              "tflops_with_silu": round(with_silu, 1)}), flush=True)
