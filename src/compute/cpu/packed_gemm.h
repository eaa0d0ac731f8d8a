// The frame of the kernels of many tokens, q8 and q4, for every instruction set. Included by kernel
// files, inside their flags; everything has internal linkage.
//
// A stretch of columns of some panels is unpacked once into L1, codes as the dot product wants them
// and scales as floats, and each block of packed tokens passes over it. Totals wait in y between
// stretches, which changes no bit. While the blocks pass, what the next stretch needs is fetched into
// L2: without that, unpacking waits for memory (the difference between 128 and 512 tokens).
//
// A Kernel has
//   kPanels, kStretchTiles    panels and tiles (of 64 columns) of a stretch
//   kTileBytes                of the encoding
//   struct Stretch            one panel's part of it
//   End()                     after a call
//   Unpack(tiles, tile_stride, groups, Stretch*)
//   template <int P> Run(const Pass&, const Stretch*)   a block of up to 16 tokens x P panels
#pragma once

#include <immintrin.h>

#include "compute/cpu/kernel_table.h"

namespace moraine {
namespace {

// The tiles of the next stretch and the lines of each that one of the passes over this one fetches.
struct NextStretch {
  const uint8_t* tiles[kMaxPanels];
  size_t tile_stride;
  uint32_t line_begin, line_end;

  // Stretches of `length` tiles: that behind the one at `tile` or, at the end, the first of the panel
  // whose turn is next.
  void Find(const PanelArguments& a, const Panel* panels, int panel_count, uint32_t tile,
            uint32_t length) {
    tile_stride = a.tile_stride;
    for (int p = 0; p < panel_count; ++p) {
      tiles[p] = panels[p].tiles +
                 (tile + length < a.tile_count ? (tile + length) * a.tile_stride : a.next_panel);
    }
  }
  void Share(uint32_t lines, uint32_t pass, uint32_t passes) {
    line_begin = lines * pass / passes;
    line_end = lines * (pass + 1) / passes;
  }
  // To be called once a panel and tile.
  void Fetch(uint32_t panel, uint32_t tile) const {
    const uint8_t* data = tiles[panel] + tile * tile_stride;
    for (uint32_t line = line_begin; line < line_end; ++line) {
      _mm_prefetch(reinterpret_cast<const char*>(data + line * 64), _MM_HINT_T1);
    }
  }
};

// One block of tokens on its way over one stretch.
struct Pass {
  const PackedGroup* x;  // the stretch's first group
  uint32_t groups;
  uint32_t tokens;    // 1 to 16
  bool other_tokens;  // not as many as in the pass before
  const Panel* panels;
  size_t y_offset, y_stride;  // of the block's first token
  bool first;  // of the stretches: totals begin at zero
  NextStretch next;

  float* y(uint32_t panel, uint32_t token) const {
    return panels[panel].y + y_offset + token * y_stride;
  }
};

template <class Kernel, int P>
void GemmPanels(const PanelArguments& a, uint32_t panel) {
  constexpr uint32_t kTiles = Kernel::kStretchTiles, kLines = Kernel::kTileBytes / 64;
  const uint32_t blocks = (a.token_count + kPackedTokens - 1) / kPackedTokens;
  typename Kernel::Stretch stretch[P];
  Pass pass;
  pass.panels = a.panels + panel;
  uint32_t tokens_before = 0;
  pass.y_stride = a.y_stride;
  for (uint32_t tile = 0; tile < a.tile_count; tile += kTiles) {
    const uint32_t left = a.tile_count - tile;
    pass.first = tile == 0;
    pass.groups = 2 * (left < kTiles ? left : kTiles);
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      Kernel::Unpack(pass.panels[p].tiles + tile * a.tile_stride, a.tile_stride, pass.groups,
                     &stretch[p]);
    }
    pass.next.Find(a, pass.panels, P, tile, kTiles);
    for (uint32_t block = 0; block < blocks; ++block) {
      pass.x = a.packed + block * a.packed_stride + tile * 2;
      pass.tokens = block + 1 < blocks ? kPackedTokens : a.token_count - block * kPackedTokens;
      pass.other_tokens = pass.tokens != tokens_before;
      tokens_before = pass.tokens;
      pass.y_offset = block * kPackedTokens * a.y_stride;
      pass.next.Share(kLines, block, blocks);
      Kernel::template Run<P>(pass, stretch);
    }
  }
}

template <class Kernel>
void PackedGemm(const PanelArguments& a) {
  constexpr uint32_t P = Kernel::kPanels;
  uint32_t panel = 0;
  for (; panel + P <= a.panel_count; panel += P) GemmPanels<Kernel, P>(a, panel);
  for (; panel < a.panel_count; ++panel) GemmPanels<Kernel, 1>(a, panel);
  Kernel::End();
}

}  // namespace
}  // namespace moraine
