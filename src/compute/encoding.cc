#include "compute/encoding.h"

namespace moraine {

const char* EncodingName(Encoding encoding) {
  switch (encoding) {
    case Encoding::kF32: return "f32";
    case Encoding::kBf16: return "bf16";
    case Encoding::kQ8: return "q8";
    case Encoding::kQ4: return "q4";
    case Encoding::kQ4Bf16: return "q4_bf16";
    case Encoding::kMxfp4: return "mxfp4";
    case Encoding::kIq4Nl: return "iq4_nl";
  }
  return "unknown";
}

std::optional<Encoding> ParseEncoding(std::string_view name) {
  for (int i = 0; i < kEncodingCount; ++i) {
    const Encoding encoding = static_cast<Encoding>(i);
    if (name == EncodingName(encoding)) return encoding;
  }
  return std::nullopt;
}

ExpertView ViewExpert(const ExpertLayout& layout, const std::byte* record) {
  const uint32_t tile = TileBytes(layout.gate_up);
  const uint64_t panel_stride = 2 * uint64_t{TileCount(layout.hidden)} * tile;
  ExpertView view;
  view.gate = {record, layout.gate_up, layout.intermediate, layout.hidden, 2 * tile, panel_stride};
  view.up = view.gate;
  view.up.data = record + tile;
  view.down = MatrixView::Plain(record + layout.down_offset(), layout.down, layout.hidden,
                                layout.intermediate);
  if (layout.biases) {
    view.gate_bias = reinterpret_cast<const float*>(record + layout.bias_offset());
    view.up_bias = view.gate_bias + ExpertLayout::PaddedBias(layout.intermediate);
    view.down_bias = view.up_bias + ExpertLayout::PaddedBias(layout.intermediate);
  }
  return view;
}

}  // namespace moraine
