// make_gguf: writes a Q4_0 GGUF of a published Qwen3-MoE shape with random weights, for peers that
// read that format. Format version 3; what was checked is that llama.cpp loads and decodes a file of
// three layers, not the text of the GGUF specification.
//
// The recipe is the synthetic store's (engine/synthetic_model.h), taken from the synthetic
// checkpoint itself: routers and norms are its floats, and random blocks have the deviations of its
// records, so that routing is meant to be as skewed, as local and as predictable. What the
// architecture "qwen3moe" of GGUF has not, attention biases, is moved into matrices through u, the
// constant direction of the residual stream:
//  * layer 0's output bias puts u into the stream: here every embedding carries it;
//  * query and key biases: their rows get a component along u, which answers with a constant;
//  * the output biases of later layers: value 0 of every KV head gets a component along u and is
//    therefore nearly constant, attention's average leaves it so, and the output matrix turns it
//    into the bias.
// The weights are thus not those of the store with the same seed; shape, sizes and routing recipe
// are.
#include <fcntl.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/bytes.h"
#include "base/random.h"
#include "compute/encode.h"
#include "engine/synthetic_model.h"
#include "model/config.h"
#include "store/posix_file.h"

namespace moraine {
namespace {

constexpr uint32_t kGgufVersion = 3;
constexpr uint64_t kAlignment = 32;  // of tensor data: the format's default
enum ValueType : uint32_t {
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9
};
enum TensorType : uint32_t { kTypeF32 = 0, kTypeQ4 = 2 };
enum TokenType : int32_t { kNormalToken = 1, kControlToken = 3 };

// A Q4_0 block: an f16 scale, then 16 bytes; the low nibbles are weights 0 to 15, the high ones 16
// to 31; a nibble n stands for (n - 8) x scale.
constexpr uint32_t kBlockWeights = 32, kBlockBytes = 18;
constexpr uint64_t kChunkBytes = 8 << 20;  // what a thread fills and writes at a time
constexpr double kConstantValue = 2.0;     // of value 0 of a KV head, beside its random part

// Odd nibbles only: symmetric about zero (as in compute/random_tiles.cc). -7, -5, .., 7.
constexpr float kPlainDeviation = 4.583f;  // sqrt((8^2 - 1) / 3)
// Where a shift is added: -5, -3, .., 5, which leaves room for 2 more either way.
constexpr float kShiftedDeviation = 3.416f;  // sqrt((6^2 - 1) / 3)

struct Tensor {
  std::string name;
  TensorType type = kTypeQ4;
  uint64_t rows = 1, cols = 0;       // of all experts, one below the other
  std::vector<uint64_t> dimensions;  // as GGUF has them: innermost first
  float deviation = 0;
  // Added to weight (row, col); empty: nothing.
  std::function<float(uint64_t row, uint64_t col)> shift;
  std::vector<float> floats;  // kTypeF32
  uint64_t offset = 0;        // from the start of the data

  uint64_t RowBytes() const {
    return type == kTypeF32 ? cols * 4 : cols / kBlockWeights * kBlockBytes;
  }
  uint64_t Bytes() const { return rows * RowBytes(); }
};

class HeaderWriter {
 public:
  template <typename T>
  void Plain(T value) {
    const char* bytes = reinterpret_cast<const char*>(&value);
    text_.append(bytes, sizeof(value));
  }
  void Text(std::string_view text) {
    Plain<uint64_t>(text.size());
    text_.append(text);
  }
  void Key(std::string_view key, ValueType type) {
    Text(key);
    Plain<uint32_t>(type);
    ++key_count_;
  }
  void Uint(std::string_view key, uint32_t value) { Key(key, kUint32), Plain(value); }
  void Float(std::string_view key, float value) { Key(key, kFloat32), Plain(value); }
  void Bool(std::string_view key, bool value) { Key(key, kBool), Plain<uint8_t>(value); }
  void String(std::string_view key, std::string_view value) { Key(key, kString), Text(value); }
  void Array(std::string_view key, ValueType element, uint64_t count) {
    Key(key, kArray);
    Plain<uint32_t>(element);
    Plain(count);
  }
  uint64_t key_count() const { return key_count_; }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
  uint64_t key_count_ = 0;
};

// The synthetic checkpoint's floats, and the deviations of its random records.
class Recipe {
 public:
  static Result<Recipe> Make(const SyntheticModelOptions& options) {
    Recipe recipe;
    ASSIGN_OR_RETURN(recipe.model_, MakeSyntheticModel(options));
    ASSIGN_OR_RETURN(recipe.u_, recipe.Floats("model.layers.0.self_attn.o_proj.bias"));
    const double ratio = std::abs(recipe.u_[0]);  // u's amplitude beside a random part of 1
    recipe.u_normalised_ = ratio / std::sqrt(1 + ratio * ratio);
    return recipe;
  }
  const std::vector<float>& u() const { return u_; }
  float Sign(uint64_t i) const { return u_[i] > 0 ? 1.0f : -1.0f; }
  // A row of this by Sign() answers a normalised stream with 1, whatever the token.
  double UnitAlongU() const { return 1 / (u_normalised_ * static_cast<double>(u_.size())); }

  Result<std::vector<float>> Floats(const std::string& name) const {
    const SourceTensor* tensor = model_.checkpoint->Find(name);
    CHECK(tensor != nullptr, name);
    std::vector<float> values(tensor->element_count());
    RETURN_IF_ERROR(model_.checkpoint->ReadFloats(*tensor, 0, values));
    return values;
  }
  // Of a dense matrix, by its role in the store.
  Result<float> DenseDeviation(const std::string& role) const {
    const std::vector<DenseTensor>& dense = model_.plan->manifest().dense;
    const auto found = std::ranges::find(dense, role, &DenseTensor::name);
    CHECK(found != dense.end(), role);
    const size_t index = static_cast<size_t>(found - dense.begin());
    AlignedBytes strip(model_.plan->DenseStripBytes(index, 0));
    RETURN_IF_ERROR(model_.plan->EncodeDenseStrip(*model_.checkpoint, index, 0, strip.span()));
    return DeviationOf(strip.data(), *ParseEncoding(found->encoding), found->cols);
  }
  struct ExpertDeviations {
    float gate_up = 0, down = 0;
  };
  Result<ExpertDeviations> OfExperts(uint32_t layer) const {
    const LayerManifest& entry = model_.plan->manifest().layers[layer];
    const ExpertLayout layout = {*ParseEncoding(entry.gate_up_encoding),
                                 *ParseEncoding(entry.down_encoding), entry.hidden,
                                 entry.intermediate};
    AlignedBytes record(entry.record_bytes);
    RETURN_IF_ERROR(model_.plan->EncodeExpert(*model_.checkpoint, {LayerId(layer), ExpertId(0)},
                                              record.span()));
    return ExpertDeviations{
        DeviationOf(record.data(), layout.gate_up, layout.hidden),
        DeviationOf(record.data() + layout.down_offset(), layout.down, layout.intermediate)};
  }

 private:
  class AlignedBytes {
   public:
    explicit AlignedBytes(uint64_t bytes)
        : storage_(bytes + 64),
          data_(storage_.data() + (64 - reinterpret_cast<uintptr_t>(storage_.data()) % 64) % 64),
          bytes_(bytes) {}
    std::byte* data() { return data_; }
    std::span<std::byte> span() { return {data_, bytes_}; }

   private:
    std::vector<std::byte> storage_;
    std::byte* data_;
    uint64_t bytes_;
  };

  // Of the first panel (16 rows) of tiles: at 12288 weights or more, right within 1 %.
  static float DeviationOf(const std::byte* tiles, Encoding encoding, uint32_t cols) {
    const MatrixView view = MatrixView::Plain(tiles, encoding, kTileRows, cols);
    std::vector<float> row(cols);
    double sum = 0;
    for (uint32_t r = 0; r < kTileRows; ++r) {
      DecodeRow(view, r, row.data());
      for (const float value : row) sum += static_cast<double>(value) * value;
    }
    return static_cast<float>(std::sqrt(sum / (static_cast<double>(kTileRows) * cols)));
  }

  SyntheticModel model_;
  std::vector<float> u_;
  double u_normalised_ = 0;  // amplitude of u in a stream that RMSNorm has normalised to 1
};

// Lists the tensors of one model in the order of the file.
class TensorList {
 public:
  TensorList(const PublishedShape& shape, const Recipe& recipe) : s_(shape), recipe_(recipe) {}

  Result<std::vector<Tensor>> Make() {
    const Recipe* r = &recipe_;
    Matrix("token_embd.weight", 1.0f, s_.vocab, s_.hidden).shift = [r](uint64_t, uint64_t col) {
      return r->u()[col];
    };
    for (uint32_t layer = 0; layer < s_.layers; ++layer) RETURN_IF_ERROR(AddLayer(layer));
    RETURN_IF_ERROR(AddFloats("output_norm.weight", "model.norm.weight", {s_.hidden}));
    ASSIGN_OR_RETURN(const float deviation, recipe_.DenseDeviation("output"));
    Matrix("output.weight", deviation, s_.vocab, s_.hidden);
    uint64_t offset = 0;
    for (Tensor& tensor : tensors_) {
      tensor.offset = offset;
      offset = AlignUp(offset + tensor.Bytes(), kAlignment);
    }
    return std::move(tensors_);
  }

 private:
  Status AddLayer(uint32_t layer) {
    const std::string to = fmt::format("blk.{}.", layer);
    const std::string from = fmt::format("model.layers.{}.", layer);
    RETURN_IF_ERROR(
        AddFloats(to + "attn_norm.weight", from + "input_layernorm.weight", {s_.hidden}));
    RETURN_IF_ERROR(AddAttention(layer, to, from + "self_attn."));
    RETURN_IF_ERROR(
        AddFloats(to + "ffn_norm.weight", from + "post_attention_layernorm.weight", {s_.hidden}));
    RETURN_IF_ERROR(
        AddFloats(to + "ffn_gate_inp.weight", from + "mlp.gate.weight", {s_.hidden, s_.experts}));
    ASSIGN_OR_RETURN(const Recipe::ExpertDeviations deviations, recipe_.OfExperts(layer));
    const uint32_t width = s_.expert_intermediate;
    for (const char* name : {"ffn_gate_exps.weight", "ffn_up_exps.weight"}) {
      Matrix(to + name, deviations.gate_up, width, s_.hidden, s_.experts);
    }
    Matrix(to + "ffn_down_exps.weight", deviations.down, s_.hidden, width, s_.experts);
    return OkStatus();
  }

  Status AddAttention(uint32_t layer, const std::string& to, const std::string& from) {
    const uint32_t query = s_.query_heads * s_.head_dim, kv = s_.kv_heads * s_.head_dim;
    const std::string role = fmt::format("layers.{}.attention.", layer);
    const Recipe* const r = &recipe_;
    const float unit = static_cast<float>(recipe_.UnitAlongU());
    for (const auto& [name, part, rows] :
         {std::tuple("q", "attn_q.weight", query), std::tuple("k", "attn_k.weight", kv)}) {
      ASSIGN_OR_RETURN(const std::vector<float> bias, recipe_.Floats(from + name + "_proj.bias"));
      ASSIGN_OR_RETURN(const float deviation, recipe_.DenseDeviation(role + name));
      Matrix(to + part, deviation, rows, s_.hidden).shift =
          [r, scale = bias[0] * unit](uint64_t, uint64_t col) { return scale * r->Sign(col); };
    }
    const uint32_t head_dim = s_.head_dim;
    ASSIGN_OR_RETURN(const float value_deviation, recipe_.DenseDeviation(role + "v"));
    Matrix(to + "attn_v.weight", value_deviation, kv, s_.hidden).shift =
        [r, head_dim, scale = static_cast<float>(kConstantValue) * unit](uint64_t row,
                                                                         uint64_t col) {
          return row % head_dim == 0 ? scale * r->Sign(col) : 0.0f;
        };
    ASSIGN_OR_RETURN(std::vector<float> wanted, recipe_.Floats(from + "o_proj.bias"));
    if (layer == 0) std::ranges::fill(wanted, 0.0f);  // the embeddings carry it
    for (float& value : wanted) value /= static_cast<float>(s_.query_heads * kConstantValue);
    ASSIGN_OR_RETURN(const float output_deviation, recipe_.DenseDeviation(role + "o"));
    Matrix(to + "attn_output.weight", output_deviation, s_.hidden, query).shift =
        [head_dim, wanted = std::move(wanted)](uint64_t row, uint64_t col) {
          return col % head_dim == 0 ? wanted[row] : 0.0f;
        };
    for (const char* name : {"q_norm", "k_norm"}) {
      RETURN_IF_ERROR(AddFloats(fmt::format("{}attn_{}.weight", to, name),
                                fmt::format("{}{}.weight", from, name), {head_dim}));
    }
    return OkStatus();
  }

  Tensor& Matrix(std::string name, float deviation, uint64_t rows, uint64_t cols,
                 uint64_t count = 1) {
    Tensor tensor;
    tensor.name = std::move(name);
    tensor.rows = rows * count;
    tensor.cols = cols;
    tensor.dimensions = {cols, rows};
    if (count > 1) tensor.dimensions.push_back(count);
    tensor.deviation = deviation;
    return tensors_.emplace_back(std::move(tensor));
  }

  Status AddFloats(std::string name, const std::string& source, std::vector<uint64_t> dimensions) {
    Tensor tensor;
    tensor.name = std::move(name);
    tensor.type = kTypeF32;
    ASSIGN_OR_RETURN(tensor.floats, recipe_.Floats(source));
    tensor.cols = tensor.floats.size();
    tensor.dimensions = std::move(dimensions);
    tensors_.push_back(std::move(tensor));
    return OkStatus();
  }

  const PublishedShape& s_;
  const Recipe& recipe_;
  std::vector<Tensor> tensors_;
};

void FillPlainBlocks(const Tensor& tensor, Random& random, std::span<std::byte> blocks) {
  constexpr uint64_t kOddNibbles = 0x1111111111111111ull;
  const uint16_t scale = FloatToF16(tensor.deviation / kPlainDeviation);
  for (size_t at = 0; at < blocks.size(); at += kBlockBytes) {
    const uint64_t words[2] = {random.Next() | kOddNibbles, random.Next() | kOddNibbles};
    std::memcpy(blocks.data() + at, &scale, 2);
    std::memcpy(blocks.data() + at + 2, words, 16);
  }
}

// Rounds up or down at random, so that shifts far below one step are right on average.
void FillShiftedBlocks(const Tensor& tensor, uint64_t row, Random& random,
                       std::span<std::byte> blocks) {
  const float scale = tensor.deviation / kShiftedDeviation;
  const uint16_t scale_bits = FloatToF16(scale);
  for (size_t at = 0, col = 0; at < blocks.size(); at += kBlockBytes) {
    uint8_t nibbles[kBlockWeights];
    for (uint8_t& nibble : nibbles) {
      const uint64_t bits = random.Next();
      const float base = static_cast<float>(2 * static_cast<int>(((bits >> 32) * 6) >> 32) - 5);
      const float dither = static_cast<float>(bits & 0xFFFFFF) * 0x1p-24f;
      const float level = std::floor(base + tensor.shift(row, col) / scale + dither);
      nibble = static_cast<uint8_t>(std::clamp(level, -8.0f, 7.0f) + 8);
      if (++col == tensor.cols) col = 0, ++row;
    }
    std::memcpy(blocks.data() + at, &scale_bits, 2);
    for (uint32_t i = 0; i < 16; ++i) {
      blocks[at + 2 + i] = static_cast<std::byte>(nibbles[i] | nibbles[i + 16] << 4);
    }
  }
}

Status WriteHeader(const PublishedShape& s, const std::vector<Tensor>& tensors, PosixFile& file,
                   uint64_t* data_start) {
  const nlohmann::json tokenizer = nlohmann::json::parse(SyntheticTokenizerJson(s.vocab));
  std::vector<std::string> tokens(s.vocab, tokenizer["added_tokens"][0]["content"]);
  for (const auto& [text, id] : tokenizer["model"]["vocab"].items())
    tokens[id.get<size_t>()] = text;

  HeaderWriter w;
  const std::string a = "qwen3moe.";
  w.String("general.architecture", "qwen3moe");
  w.String("general.name", fmt::format("{}, random weights", s.name));
  w.Uint("general.file_type", 2);  // mostly Q4_0
  w.Uint("general.quantization_version", 2);
  w.Uint(a + "block_count", s.layers);
  w.Uint(a + "context_length", 40960);
  w.Uint(a + "embedding_length", s.hidden);
  w.Uint(a + "feed_forward_length", s.dense_intermediate);
  w.Uint(a + "attention.head_count", s.query_heads);
  w.Uint(a + "attention.head_count_kv", s.kv_heads);
  w.Uint(a + "attention.key_length", s.head_dim);
  w.Uint(a + "attention.value_length", s.head_dim);
  w.Float(a + "attention.layer_norm_rms_epsilon", 1e-6f);
  w.Float(a + "rope.freq_base", 1e6f);
  w.Uint(a + "expert_count", s.experts);
  w.Uint(a + "expert_used_count", s.top_k);
  w.Uint(a + "expert_feed_forward_length", s.expert_intermediate);
  w.String("tokenizer.ggml.model", "gpt2");
  w.String("tokenizer.ggml.pre", "qwen2");
  w.Array("tokenizer.ggml.tokens", kString, s.vocab);
  for (const std::string& token : tokens) w.Text(token);
  w.Array("tokenizer.ggml.token_type", kInt32, s.vocab);
  for (uint32_t i = 0; i < s.vocab; ++i) {
    w.Plain<int32_t>(i + 1 == s.vocab ? kControlToken : kNormalToken);
  }
  const nlohmann::json& merges = tokenizer["model"]["merges"];
  w.Array("tokenizer.ggml.merges", kString, merges.size());
  for (const nlohmann::json& merge : merges) w.Text(merge.get<std::string>());
  w.Uint("tokenizer.ggml.eos_token_id", s.vocab - 1);
  w.Bool("tokenizer.ggml.add_bos_token", false);
  const uint64_t key_count = w.key_count();
  for (const Tensor& tensor : tensors) {
    w.Text(tensor.name);
    w.Plain(static_cast<uint32_t>(tensor.dimensions.size()));
    for (const uint64_t dimension : tensor.dimensions) w.Plain(dimension);
    w.Plain<uint32_t>(tensor.type);
    w.Plain(tensor.offset);
  }
  HeaderWriter start;
  start.Plain(std::array{'G', 'G', 'U', 'F'});
  start.Plain(kGgufVersion);
  start.Plain<uint64_t>(tensors.size());
  start.Plain(key_count);
  const std::string header = start.text() + w.text();
  *data_start = AlignUp(header.size(), kAlignment);
  return file.WriteAt(0, std::as_bytes(std::span(header)));
}

struct Chunk {
  const Tensor* tensor;
  uint64_t first_row, rows;
};

// One chunk is one seed, so that the file does not depend on the number of threads.
Status WriteChunk(const Chunk& chunk, uint64_t seed, uint64_t data_start, const PosixFile& file,
                  std::vector<std::byte>& buffer) {
  const Tensor& tensor = *chunk.tensor;
  const uint64_t offset = data_start + tensor.offset + chunk.first_row * tensor.RowBytes();
  if (tensor.type == kTypeF32) return file.WriteAt(offset, std::as_bytes(std::span(tensor.floats)));
  Random random(seed);
  buffer.resize(chunk.rows * tensor.RowBytes());
  if (tensor.shift) {
    FillShiftedBlocks(tensor, chunk.first_row, random, buffer);
  } else {
    FillPlainBlocks(tensor, random, buffer);
  }
  RETURN_IF_ERROR(file.WriteAt(offset, buffer));
  file.StartWriteback(offset, buffer.size());
  return OkStatus();
}

Status WriteData(const std::vector<Tensor>& tensors, uint64_t seed, int threads,
                 uint64_t data_start, const PosixFile& file) {
  std::vector<Chunk> chunks;
  for (const Tensor& tensor : tensors) {
    const uint64_t step = std::max<uint64_t>(1, kChunkBytes / tensor.RowBytes());
    for (uint64_t row = 0; row < tensor.rows; row += step) {
      chunks.push_back({&tensor, row, std::min(step, tensor.rows - row)});
    }
  }
  std::atomic<size_t> next = 0;
  std::mutex mutex;
  Status status;  // the first failure
  const auto work = [&] {
    std::vector<std::byte> buffer;
    for (size_t i = next++; i < chunks.size(); i = next++) {
      Status written =
          WriteChunk(chunks[i], Random(seed ^ i << 20).Next(), data_start, file, buffer);
      if (written.ok()) continue;
      const std::lock_guard lock(mutex);
      if (status.ok()) status = std::move(written);
      next = chunks.size();
    }
  };
  std::vector<std::jthread> workers;
  for (int i = 0; i < threads; ++i) workers.emplace_back(work);
  workers.clear();
  return status;
}

struct Options {
  std::string path, shape = "qwen3-30b-a3b";
  uint32_t layers = 0;
  double skew = SyntheticModelOptions().skew;
  uint64_t seed = 1;
  int threads = 2;
};

Status Run(const Options& options) {
  SyntheticModelOptions model;
  model.shape = *FindPublishedShape(options.shape);  // the option's check has seen it
  if (options.layers > 0) model.shape.layers = options.layers;
  model.skew = options.skew;
  model.seed = options.seed;
  ASSIGN_OR_RETURN(const Recipe recipe, Recipe::Make(model));
  ASSIGN_OR_RETURN(const std::vector<Tensor> tensors, TensorList(model.shape, recipe).Make());
  const std::string partial = options.path + ".partial";
  ASSIGN_OR_RETURN(PosixFile file, PosixFile::Open(partial, O_RDWR | O_CREAT | O_TRUNC));
  uint64_t data_start = 0;
  RETURN_IF_ERROR(WriteHeader(model.shape, tensors, file, &data_start));
  RETURN_IF_ERROR(WriteData(tensors, options.seed, options.threads, data_start, file));
  const Tensor& last = tensors.back();
  const uint64_t bytes = data_start + AlignUp(last.offset + last.Bytes(), kAlignment);
  RETURN_IF_ERROR(file.Truncate(bytes));
  RETURN_IF_ERROR(file.SyncData());
  file.DropCache(0, 0);
  if (std::rename(partial.c_str(), options.path.c_str()) != 0) {
    return IoErrorFromErrno("renaming " + partial + " to " + options.path, errno);
  }
  fmt::print("{}: {}, {} tensors, {:.2f} GB\n", options.path, model.shape.name, tensors.size(),
             static_cast<double>(bytes) * 1e-9);
  return OkStatus();
}

}  // namespace
}  // namespace moraine

int main(int argc, char** argv) {
  moraine::Options options;
  CLI::App app("Writes a Q4_0 GGUF of a published Qwen3-MoE shape with random weights");
  app.add_option("file", options.path, "the GGUF to write")->required();
  app.add_option("--shape", options.shape, "whose dimensions")
      ->check(CLI::IsMember({"qwen3-30b-a3b", "qwen3-235b", "tiny"}))
      ->capture_default_str();
  app.add_option("--layers", options.layers, "only the first so many layers (default: all)");
  app.add_option("--skew", options.skew, "as for moraine bench make-store")->capture_default_str();
  app.add_option("--seed", options.seed, "of the random weights")->capture_default_str();
  app.add_option("--threads", options.threads)->check(CLI::Range(1, 64))->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const moraine::Status status = moraine::Run(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "make_gguf: %s\n", status.ToString().c_str());
  return 1;
}
