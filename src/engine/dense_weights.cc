#include "engine/dense_weights.h"

namespace moraine {
namespace {

constexpr uint64_t kAlignment = 64;  // MatrixView::data

}  // namespace

uint64_t DenseWeights::BytesFor(const Manifest& manifest) {
  uint64_t bytes = 0;
  for (const DenseTensor& tensor : manifest.dense) bytes += AlignUp(tensor.bytes, kAlignment);
  return bytes;
}

Result<std::unique_ptr<DenseWeights>> DenseWeights::Load(const Store& store) {
  auto weights = std::make_unique<DenseWeights>();
  ASSIGN_OR_RETURN(weights->arena_, HostArena::Allocate(BytesFor(store.manifest()), {}));
  uint64_t offset = 0;
  for (const DenseTensor& tensor : store.manifest().dense) {
    std::byte* data = weights->arena_.data() + offset;
    RETURN_IF_ERROR(store.ReadDense(tensor, {data, tensor.bytes}));
    weights->entries_.emplace(tensor.name, Entry{&tensor, data});
    offset += AlignUp(tensor.bytes, kAlignment);
  }
  return weights;
}

const DenseWeights::Entry& DenseWeights::Find(const std::string& role) const {
  const auto it = entries_.find(role);
  CHECK(it != entries_.end(), "no dense tensor " + role);
  return it->second;
}

MatrixView DenseWeights::Matrix(const std::string& role) const {
  const Entry& entry = Find(role);
  const auto encoding = ParseEncoding(entry.tensor->encoding);
  CHECK(encoding.has_value(), role + " is no matrix");
  return MatrixView::Plain(entry.data, *encoding, entry.tensor->rows, entry.tensor->cols);
}

std::span<const float> DenseWeights::Vector(const std::string& role) const {
  const Entry& entry = Find(role);
  CHECK(entry.tensor->encoding == "vector", role + " is no vector");
  return {reinterpret_cast<const float*>(entry.data), entry.tensor->cols};
}

}  // namespace moraine
