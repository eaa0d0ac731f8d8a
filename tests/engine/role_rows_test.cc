// ReadRoleRows and ReadRoleBlocks on a tensor whose values say where they are.
#include "engine/role_rows.h"

#include <gtest/gtest.h>

#include <cstring>

namespace moraine {
namespace {

// One f32 tensor: element i is i + 1, so that 0 is only what nobody wrote or padding.
class CountingCheckpoint final : public Checkpoint {
 public:
  explicit CountingCheckpoint(std::vector<uint64_t> shape) {
    SourceTensor tensor;
    tensor.name = "counting";
    tensor.type = SourceType::kF32;
    tensor.shape = std::move(shape);
    tensors_.push_back(tensor);
  }
  const SourceIdentity& identity() const override { return identity_; }
  std::optional<std::string> ReadFile(const std::string&) const override { return std::nullopt; }
  const std::vector<SourceTensor>& tensors() const override { return tensors_; }
  const SourceTensor* Find(const std::string&) const override { return &tensors_[0]; }
  std::string FileOf(const SourceTensor&) const override { return "file"; }
  Status ReadFloats(const SourceTensor& tensor, uint64_t first,
                    std::span<float> destination) const override {
    EXPECT_LE(first + destination.size(), tensor.element_count());
    for (size_t i = 0; i < destination.size(); ++i) {
      destination[i] = static_cast<float>(first + i + 1);
    }
    return OkStatus();
  }
  Status ReadBlocks(const SourceTensor& tensor, uint64_t first,
                    std::span<std::byte> destination) const override {
    std::vector<float> values(destination.size() / sizeof(float));
    RETURN_IF_ERROR(ReadFloats(tensor, first, values));
    std::memcpy(destination.data(), values.data(), destination.size());
    return OkStatus();
  }

 private:
  SourceIdentity identity_;
  std::vector<SourceTensor> tensors_;
};

// Reads a role in strips of every size and expects value(row, column), counted from 1; 0: padding.
template <typename Value>
void ExpectRows(const DenseRole& role, const std::vector<uint64_t>& shape, Value value) {
  const CountingCheckpoint checkpoint(shape);
  for (uint32_t step = 1; step <= role.rows; ++step) {
    for (uint32_t first = 0; first < role.rows; first += step) {
      const uint32_t count = std::min(step, role.rows - first);
      std::vector<float> rows(size_t{count} * role.cols, -1.0f);
      ASSERT_TRUE(ReadRoleRows(checkpoint, checkpoint.tensors()[0], role, first, count, rows).ok());
      std::vector<float> blocks(rows.size(), -1.0f);
      if (HasBlocksInOrder(role, 1)) {
        ASSERT_TRUE(ReadRoleBlocks(checkpoint, checkpoint.tensors()[0], role, first, count,
                                   std::as_writable_bytes(std::span(blocks)))
                        .ok());
        EXPECT_EQ(blocks, rows);
      }
      for (uint32_t r = 0; r < count; ++r) {
        for (uint32_t c = 0; c < role.cols; ++c) {
          ASSERT_EQ(rows[size_t{r} * role.cols + c], static_cast<float>(value(first + r, c)))
              << "row " << first + r << " column " << c << " in strips of " << step;
        }
      }
    }
  }
}

DenseRole Role(uint32_t rows, uint32_t cols, std::vector<uint64_t> shape) {
  DenseRole role;
  role.rows = rows;
  role.cols = cols;
  role.source_shape = std::move(shape);
  return role;
}

TEST(RoleRows, AWholeTensor) {
  ExpectRows(Role(5, 3, {5, 3}), {5, 3}, [](uint32_t r, uint32_t c) { return r * 3 + c + 1; });
}

// Of 3 heads of 2 + 5 rows the last 5 each, as v of Qwen3-Next lies among q, k, v and z.
TEST(RoleRows, PartsOfEachHead) {
  DenseRole role = Role(15, 4, {21, 4});
  role.part_rows = role.padded_rows = 5;
  role.period = 7;
  role.offset = 2;
  ExpectRows(role, {21, 4}, [](uint32_t r, uint32_t c) {
    return (r / 5 * 7 + 2 + r % 5) * 4 + c + 1;
  });
}

// Values of 3 heads of 2 + 5 rows, each padded to 16: MLA's v_up.
TEST(RoleRows, APaddedStack) {
  DenseRole role = Role(48, 4, {21, 4});
  role.part_rows = 5;
  role.padded_rows = 16;
  role.period = 7;
  role.offset = 2;
  ExpectRows(role, {21, 4}, [](uint32_t r, uint32_t c) {
    return r % 16 < 5 ? (r / 16 * 7 + 2 + r % 16) * 4 + c + 1 : 0;
  });
}

// Keys of 3 heads of 2 + 5 rows, turned: MLA's k_up of kv_rank 4 and nope_dim 2.
TEST(RoleRows, ATransposedStack) {
  DenseRole role = Role(48, 2, {21, 4});
  role.part_rows = 4;
  role.padded_rows = 16;
  role.period = 7;
  role.transposed = true;
  ExpectRows(role, {21, 4}, [](uint32_t r, uint32_t c) {
    return r % 16 < 4 ? (r / 16 * 7 + c) * 4 + r % 16 + 1 : 0;
  });
}

// Of 2 groups of 3 parts of 2 rows: the tensor has 0 3 1 4 2 5 where the role has 0 1 2 3 4 5, after
// one row of something else.
TEST(RoleRows, PartsInAnotherOrder) {
  DenseRole role = Role(12, 4, {13, 4});
  role.part_rows = role.padded_rows = role.period = 2;
  role.offset = 1;
  role.order = {.groups = 2, .group_parts = 3};
  constexpr uint32_t kPlaces[] = {0, 2, 4, 1, 3, 5};
  ExpectRows(role, {13, 4}, [&](uint32_t r, uint32_t c) {
    return (1 + kPlaces[r / 2] * 2 + r % 2) * 4 + c + 1;
  });
}

// The same of columns, of which the first is none of them.
TEST(RoleRows, ColumnsInAnotherOrder) {
  DenseRole role = Role(5, 13, {5, 13});
  role.columns = {.parts = {.groups = 2, .group_parts = 3}, .first = 1, .width = 2};
  constexpr uint32_t kPlaces[] = {0, 2, 4, 1, 3, 5};
  ExpectRows(role, {5, 13}, [&](uint32_t r, uint32_t c) {
    const uint32_t place = c == 0 ? 0 : 1 + kPlaces[(c - 1) / 2] * 2 + (c - 1) % 2;
    return r * 13 + place + 1;
  });
  EXPECT_FALSE(IsWholeTensor(role));
  EXPECT_FALSE(HasBlocksInOrder(role, 32));
}

}  // namespace
}  // namespace moraine
