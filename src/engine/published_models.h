// The config.json of published mixture-of-experts models, as far as it decides what is computed: for
// synthetic stores of the models' own architecture and exact dimensions, and for planning.
//
// published_shapes.h has the same models under one architecture, with routing that is skewed as in trained
// models; what is here is exact and unskewed.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace moraine {

struct PublishedModel {
  const char* name;        // as in PublishedShapes, where it has the model
  const char* repository;  // on Hugging Face
  const char* config;      // config.json
};

std::span<const PublishedModel> PublishedModels();
// nullptr if there is none of that name.
const PublishedModel* FindPublishedModel(std::string_view name);

// The config with only the first `layers` layers (0: all), and the changes of `overrides`, a JSON object.
std::string PublishedConfig(const PublishedModel& model, uint32_t layers,
                            std::string_view overrides = "{}");

}  // namespace moraine
