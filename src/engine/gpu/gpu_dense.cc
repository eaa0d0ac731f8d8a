#include "engine/gpu/gpu_dense.h"

#include <algorithm>
#include <unordered_set>

#include "base/bytes.h"
#include "engine/gpu/vram_needs.h"

namespace moraine {
namespace {

// Inside a group: tiles are multiples of 64 bytes, so matrices of whole panels lie one behind the other as one
// matrix does.
constexpr uint64_t kTensorAlignment = 64;

bool Joins(const gpu::DeviceMatrix& above, const gpu::DeviceMatrix& below) {
  return above.encoding == below.encoding && above.cols == below.cols &&
         above.rows % kTileRows == 0 && above.data + above.bytes() == below.data;
}

}  // namespace

Result<GpuDense> GpuDense::Load(const Store& store,
                                const std::vector<const DenseTensor*>& tensors,
                                const std::vector<std::vector<std::string>>& groups) {
  GpuDense dense;
  ASSIGN_OR_RETURN(dense.memory_,
                   gpu::DeviceMemory::Allocate(GpuDenseWeightBytes(tensors), "dense weights"));
  std::unordered_set<std::string> grouped;
  for (const auto& group : groups) grouped.insert(group.begin(), group.end());
  std::vector<std::vector<std::string>> order = groups;
  std::unordered_map<std::string, const DenseTensor*> by_name;
  for (const DenseTensor* tensor : tensors) {
    if (!grouped.contains(tensor->name)) order.push_back({tensor->name});
    by_name.emplace(tensor->name, tensor);
  }

  ASSIGN_OR_RETURN(const gpu::OwnedStream stream, gpu::OwnedStream::Create());
  std::vector<std::byte> staging;
  uint64_t offset = 0;
  for (const auto& group : order) {
    offset = AlignUp(offset, kGpuTensorAlignment);
    for (const std::string& role : group) {
      const auto found = by_name.find(role);
      CHECK(found != by_name.end(), "no dense tensor " + role);
      const DenseTensor& tensor = *found->second;
      staging.resize(tensor.bytes);
      RETURN_IF_ERROR(store.ReadDense(tensor, staging));
      std::byte* const data = dense.memory_.data() + offset;
      RETURN_IF_ERROR(gpu::Copy(data, staging.data(), tensor.bytes, stream.get()));
      RETURN_IF_ERROR(stream.Synchronize());
      dense.entries_.emplace(role, Entry{&tensor, data});
      offset += AlignUp(tensor.bytes, kTensorAlignment);
    }
  }
  CHECK(offset <= dense.memory_.size_bytes(), "dense weights past their memory");
  return dense;
}

const GpuDense::Entry& GpuDense::Find(const std::string& role) const {
  const auto found = entries_.find(role);
  CHECK(found != entries_.end(), "no dense tensor " + role);
  return found->second;
}

gpu::DeviceMatrix GpuDense::Matrix(const std::string& role) const {
  const Entry& entry = Find(role);
  const auto encoding = ParseEncoding(entry.tensor->encoding);
  CHECK(encoding.has_value(), role + " is no matrix");
  return {entry.data, *encoding, entry.tensor->rows, entry.tensor->cols};
}

GpuProjection GpuDense::Projection(const std::vector<std::string>& roles) const {
  GpuProjection projection;
  for (const std::string& role : roles) {
    const gpu::DeviceMatrix matrix = Matrix(role);
    projection.rows += matrix.rows;
    projection.cols = matrix.cols;
    if (!projection.parts.empty() && Joins(projection.parts.back(), matrix)) {
      projection.parts.back().rows += matrix.rows;
    } else {
      projection.parts.push_back(matrix);
    }
  }
  return projection;
}

const float* GpuDense::Vector(const std::string& role) const {
  const Entry& entry = Find(role);
  CHECK(entry.tensor->encoding == "vector", role + " is no vector");
  return reinterpret_cast<const float*>(entry.data);
}

}  // namespace moraine
