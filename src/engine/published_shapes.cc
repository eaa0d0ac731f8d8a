#include "engine/published_shapes.h"

namespace moraine {
namespace {

// Sources: the config.json published with each model on Hugging Face: Qwen/Qwen3-30B-A3B,
// Qwen/Qwen3-235B-A22B, Qwen/Qwen3-Coder-Next, Qwen/Qwen3-Next-80B-A3B-Instruct,
// deepseek-ai/DeepSeek-V2-Lite, deepseek-ai/DeepSeek-V3, moonshotai/Kimi-K2-Instruct, zai-org/GLM-4.5,
// MiniMaxAI/MiniMax-M2, openai/gpt-oss-120b, openai/gpt-oss-20b, allenai/OLMoE-1B-7B-0924.
// Stand-ins for attention of about the same size: MLA of V2-Lite 14 M weights a layer, V3 187 M, K2
// 101 M; Qwen3-Next's gated attention and linear attention are taken as its full-attention layers.
constexpr PublishedShape kShapes[] = {
    // name               layers dense experts k  hidden expert dense   heads     dim  vocab
    {"qwen3-30b-a3b",     48, 0, 128, 8,   2048, 768, 6144,    32, 4, 128,   151936, true},
    {"qwen3-235b",        94, 0, 128, 8,   4096, 1536, 12288,  64, 4, 128,   151936, true},
    {"qwen3-coder-next",  48, 0, 512, 10,  2048, 512, 5120,    16, 2, 256,   151936, false},
    {"qwen3-next",        48, 0, 512, 10,  2048, 512, 5120,    16, 2, 256,   151936, false},
    {"deepseek-v2-lite",  27, 1, 64, 6,    2048, 1408, 10944,  16, 8, 128,   102400, false},
    {"deepseek-v3",       61, 3, 256, 8,   7168, 2048, 18432,  96, 8, 128,   129280, false},
    {"kimi-k2",           61, 1, 384, 8,   7168, 2048, 18432,  48, 8, 128,   163840, false},
    {"glm-4.5",           92, 3, 160, 8,   5120, 1536, 12288,  96, 8, 128,   151552, false},
    {"minimax-m2",        62, 0, 256, 8,   3072, 1536, 8192,   48, 8, 128,   200064, false},
    {"gpt-oss-120b",      36, 0, 128, 4,   2880, 2880, 2880,   64, 8, 64,    201088, false},
    {"gpt-oss-20b",       24, 0, 32, 4,    2880, 2880, 2880,   64, 8, 64,    201088, false},
    {"olmoe",             16, 0, 64, 8,    2048, 1024, 1024,   16, 16, 128,  50304, false},
    // No published model: 48 layers that fit a test and a quick look at the routing.
    {"tiny",              48, 0, 128, 8,   256, 64, 512,       4, 2, 64,     4096, true},
};

}  // namespace

std::span<const PublishedShape> PublishedShapes() { return kShapes; }

const PublishedShape* FindPublishedShape(std::string_view name) {
  for (const PublishedShape& shape : kShapes) {
    if (shape.name == name) return &shape;
  }
  return nullptr;
}

}  // namespace moraine
