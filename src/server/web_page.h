// WebPage: the static files of the page at "/", embedded in the binary.
//
// A handful of files of fixed names and 45 KB compressed: so they are compressed once, at start, sent whole,
// and asked about again at each load (ETag, no-cache) instead of being cached under hashed names.
//
// They are public, as no key can be asked for before there is a page to ask with; they contain nothing but
// the program. Their CSP allows this origin only: no inline script, no other host, no frame.
//
// Threads: thread-safe, immutable.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "server/http_message.h"

namespace moraine {

struct WebAsset {
  std::string_view path;  // "/page.js"; "/" is the page itself
  std::string_view content_type;
  std::string_view body;
};

// What was built from web/; empty in a build without npm, and in sanitizer builds.
std::span<const WebAsset> EmbeddedWebAssets();

class WebPage {
 public:
  // The assets' bytes outlive the page.
  explicit WebPage(std::span<const WebAsset> assets);

  bool Has(std::string_view path) const { return Find(path) != nullptr; }
  // For a path that it has: 200, or 304 if the client has the same already.
  HttpResponse Answer(const RequestHead& head) const;

 private:
  struct File {
    WebAsset asset;
    std::string compressed;  // gzip; empty if that is no smaller
    std::string etag;
  };
  const File* Find(std::string_view path) const;

  std::vector<File> files_;
};

}  // namespace moraine
