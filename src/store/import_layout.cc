#include "store/import_layout.h"

#include <xxhash.h>

#include <algorithm>
#include <cstdio>

#include "base/bytes.h"
#include "store/pack_header.h"

namespace moraine {
namespace {

// A store is identified by what went into it. Not random: two imports of one source with one set of
// options give the same bytes, header pages included.
std::string MakeUuid(Manifest manifest, uint64_t pack_limit_bytes, const DriveSet& drives) {
  manifest.store_uuid.clear();
  manifest.source.description.clear();  // the same source may have been moved
  std::string identity = manifest.ToJson() + std::to_string(pack_limit_bytes);
  // One stripe is laid out as none, and a mirror changes nothing.
  for (const DriveSet::Drive& stripe : drives.stripes) {
    if (drives.stripes.size() > 1) identity += " " + std::to_string(stripe.weight);
  }
  const XXH128_hash_t digest = XXH3_128bits(identity.data(), identity.size());
  const unsigned long long high = digest.high64, low = digest.low64;
  char text[37];
  std::snprintf(text, sizeof(text), "%08llx-%04llx-%04llx-%04llx-%012llx", high >> 32,
                high >> 16 & 0xFFFF, high & 0xFFFF, low >> 48, low & 0xFFFFFFFFFFFFull);
  return text;
}

void AddUnit(const ImportUnit& unit, ImportLayout* layout) {
  layout->units.push_back(unit);
  layout->total_bytes += unit.bytes;
  layout->max_unit_bytes = std::max(layout->max_unit_bytes, unit.bytes);
}

void PlaceDense(const ImportPlan& plan, ImportLayout* layout) {
  uint64_t offset = kPackAlignment;
  for (size_t i = 0; i < layout->manifest.dense.size(); ++i) {
    DenseTensor& tensor = layout->manifest.dense[i];
    tensor.offset = offset;
    const uint32_t strip_count = plan.DenseStripCount(i);
    for (uint32_t strip = 0; strip < strip_count; ++strip) {
      const uint64_t bytes = plan.DenseStripBytes(i, strip);
      AddUnit({.is_expert = false, .first = static_cast<uint32_t>(i), .second = strip, .file = 0,
               .offset = offset, .bytes = bytes},
              layout);
      offset += bytes;
    }
    CHECK(offset - tensor.offset == tensor.bytes, tensor.name + ": strips do not add up");
    offset = AlignUp(offset, kPackAlignment);
  }
  layout->manifest.dense_pack_bytes = offset;
  layout->file_bytes.push_back(offset);
}

// Pack n belongs to stripe n mod stripes; each stripe fills its packs one after the other.
void PlaceExperts(uint64_t pack_limit_bytes, const DriveSet& drives, ImportLayout* layout) {
  const std::vector<LayerManifest>& layers = layout->manifest.layers;
  const uint32_t stripes = drives.stripe_count();
  std::vector<uint32_t> next_pack(stripes), pack(stripes);
  std::vector<uint64_t> offset(stripes, 0);  // 0: no pack begun
  for (uint32_t s = 0; s < stripes; ++s) next_pack[s] = s;
  StripeDealer dealer(drives);
  for (uint32_t layer = 0; layer < layers.size(); ++layer) {
    const uint64_t bytes = layers[layer].record_bytes;
    CHECK(bytes % kPackAlignment == 0, "record_bytes is not a multiple of 4096");
    for (uint32_t expert = 0; expert < layers[layer].expert_count; ++expert) {
      const uint32_t s = dealer.Next();
      const bool full = offset[s] > kPackAlignment && offset[s] + bytes > pack_limit_bytes;
      if (offset[s] == 0 || full) {
        pack[s] = next_pack[s];
        next_pack[s] += stripes;
        // Packs of other stripes with lower numbers may still be to come, or, at the end, be empty.
        layout->expert_pack_count = std::max(layout->expert_pack_count, pack[s] + 1);
        layout->file_bytes.resize(1 + layout->expert_pack_count, kPackAlignment);
        offset[s] = kPackAlignment;
      }
      AddUnit({.is_expert = true, .first = layer, .second = expert, .file = 1 + pack[s],
               .offset = offset[s], .bytes = bytes},
              layout);
      offset[s] += bytes;
      layout->file_bytes[1 + pack[s]] = offset[s];
    }
  }
}

}  // namespace

ImportLayout MakeImportLayout(const ImportPlan& plan, uint64_t pack_limit_bytes,
                              const DriveSet& drives) {
  ImportLayout layout;
  layout.manifest = plan.manifest();
  layout.manifest.store_uuid = MakeUuid(layout.manifest, pack_limit_bytes, drives);
  PlaceDense(plan, &layout);
  PlaceExperts(pack_limit_bytes, drives, &layout);
  return layout;
}

std::string DescribePlanDifference(const Manifest& begun, const Manifest& now) {
  const auto differs = [](const std::string& what, const std::string& before,
                          const std::string& after) {
    return what + " was " + before + ", now " + after;
  };
  if (begun.source.fingerprint != now.source.fingerprint) {
    if (begun.source.description != now.source.description) {
      return differs("the source", begun.source.description, now.source.description);
    }
    return "the source " + now.source.description + " has changed since";
  }
  if (begun.created_by != now.created_by) {
    return differs("the program", begun.created_by, now.created_by);
  }
  if (begun.layers.size() != now.layers.size() || begun.dense.size() != now.dense.size()) {
    return "the number of layers or dense tensors";
  }
  for (size_t i = 0; i < now.layers.size(); ++i) {
    const LayerManifest& before = begun.layers[i];
    const LayerManifest& after = now.layers[i];
    const std::string what = "the encoding of layer " + std::to_string(i) + "'s experts";
    if (before.gate_up_encoding != after.gate_up_encoding) {
      return differs(what, before.gate_up_encoding, after.gate_up_encoding);
    }
    if (before.down_encoding != after.down_encoding) {
      return differs(what, before.down_encoding, after.down_encoding);
    }
    if (before.record_bytes != after.record_bytes || before.expert_count != after.expert_count) {
      return "the size or number of layer " + std::to_string(i) + "'s experts";
    }
  }
  for (size_t i = 0; i < now.dense.size(); ++i) {
    const DenseTensor& before = begun.dense[i];
    const DenseTensor& after = now.dense[i];
    if (before.name != after.name) return differs("a dense tensor", before.name, after.name);
    if (before.encoding != after.encoding) {
      return differs("the encoding of " + after.name, before.encoding, after.encoding);
    }
    if (before.bytes != after.bytes) return "the size of " + after.name;
  }
  // What was lost and how: the file of importance by which an import was weighted is there, too.
  if (begun.notes != now.notes) {
    const auto text = [](const Manifest& manifest) {
      std::string joined;
      for (const std::string& note : manifest.notes) joined += (joined.empty() ? "'" : "; ") + note;
      return joined.empty() ? "nothing" : joined + "'";
    };
    return differs("what the notes say", text(begun), text(now));
  }
  if (begun.store_uuid != now.store_uuid) return "the config, tokenizer files, stripes or the pack limit";
  return "";
}

}  // namespace moraine
