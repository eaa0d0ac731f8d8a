#include "server/web_page.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>

#include "base/check.h"

namespace moraine {
namespace {

constexpr std::string_view kContentSecurityPolicy =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

// Empty if the result would be no smaller.
std::string Gzip(std::string_view body) {
  z_stream stream{};
  constexpr int kGzipWindow = 15 + 16;
  CHECK(deflateInit2(&stream, Z_BEST_COMPRESSION, Z_DEFLATED, kGzipWindow, 9,
                     Z_DEFAULT_STRATEGY) == Z_OK, "deflateInit2");
  std::string out(body.size(), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(body.data()));
  stream.avail_in = static_cast<uInt>(body.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  const bool fits = deflate(&stream, Z_FINISH) == Z_STREAM_END;
  out.resize(fits ? stream.total_out : 0);
  deflateEnd(&stream);
  return out;
}

// A coding that is listed and not refused (q=0), RFC 9110 12.5.3.
bool AcceptsGzip(const RequestHead& head) {
  const std::string* accepted = head.Find("accept-encoding");
  if (accepted == nullptr) return false;
  std::string_view rest = *accepted;
  while (!rest.empty()) {
    const std::string_view item = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(rest.size(), item.size() + 1));
    const size_t parameters = item.find(';');
    if (ToLowerAscii(TrimBlanks(item.substr(0, parameters))) != "gzip") continue;
    const std::string quality =
        parameters == std::string_view::npos ? "" : ToLowerAscii(item.substr(parameters + 1));
    const size_t value = quality.find("q=");
    return value == std::string::npos ||
           quality.find_first_of("123456789", value) != std::string::npos;
  }
  return false;
}

}  // namespace

WebPage::WebPage(std::span<const WebAsset> assets) {
  for (const WebAsset& asset : assets) {
    const auto* bytes = reinterpret_cast<const Bytef*>(asset.body.data());
    const uLong checksum = crc32(0, bytes, static_cast<uInt>(asset.body.size()));
    // Weak: compressed or not, it is the same file.
    files_.push_back({asset, Gzip(asset.body),
                      fmt::format("W/\"{:08x}-{:x}\"", checksum, asset.body.size())});
  }
}

const WebPage::File* WebPage::Find(std::string_view path) const {
  const auto it = std::find_if(files_.begin(), files_.end(),
                               [&](const File& file) { return file.asset.path == path; });
  return it == files_.end() ? nullptr : &*it;
}

HttpResponse WebPage::Answer(const RequestHead& head) const {
  const File* file = Find(head.path());
  CHECK(file != nullptr, "Answer is for what the page has");
  HttpResponse response;
  response.fields = {{"etag", file->etag},
                     {"cache-control", "no-cache"},
                     {"vary", "accept-encoding"},
                     {"content-security-policy", std::string(kContentSecurityPolicy)},
                     {"cross-origin-opener-policy", "same-origin"},
                     {"referrer-policy", "no-referrer"}};
  // Our tags have no comma or quote inside, so looking for one in the list is comparing with each.
  const std::string* known = head.Find("if-none-match");
  if (known != nullptr && known->find(file->etag.substr(2)) != std::string::npos) {
    response.status = 304;
    response.content_type.clear();
    return response;
  }
  response.content_type = file->asset.content_type;
  if (!file->compressed.empty() && AcceptsGzip(head)) {
    response.fields.push_back({"content-encoding", "gzip"});
    response.body = file->compressed;
  } else {
    response.body = file->asset.body;
  }
  return response;
}

}  // namespace moraine
