#include "server/web_page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <array>

namespace moraine {
namespace {

using testing::HasSubstr;

std::string Gunzip(const std::string& bytes) {
  z_stream stream{};
  inflateInit2(&stream, 15 + 16);
  std::string out(1 << 20, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(inflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  inflateEnd(&stream);
  return out;
}

const std::string kScript(5000, 'x');
const std::array<WebAsset, 2> kAssets = {{{"/", "text/html; charset=utf-8", "<!doctype html>"},
                                          {"/page.js", "text/javascript", kScript}}};

RequestHead Get(std::string target, std::vector<HttpField> fields = {}) {
  RequestHead head;
  head.method = "GET";
  head.target = std::move(target);
  head.fields = std::move(fields);
  return head;
}

std::string FieldOf(const HttpResponse& response, std::string_view name) {
  for (const HttpField& field : response.fields) {
    if (field.name == name) return field.value;
  }
  return "";
}

TEST(WebPageTest, ThePolicyAllowsNothingButThisServer) {
  const HttpResponse response = WebPage(kAssets).Answer(Get("/?x=1"));
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.body, "<!doctype html>");
  const std::string policy = FieldOf(response, "content-security-policy");
  EXPECT_THAT(policy, HasSubstr("default-src 'none'"));
  EXPECT_THAT(policy, HasSubstr("script-src 'self';"));
  EXPECT_THAT(policy, HasSubstr("frame-ancestors 'none'"));
  for (const char* hole : {"unsafe", "http", "*", "data:", "blob:"}) {
    EXPECT_EQ(policy.find(hole), std::string::npos) << hole;
  }
}

TEST(WebPageTest, KnowsItsFilesOnly) {
  const WebPage page(kAssets);
  EXPECT_TRUE(page.Has("/"));
  EXPECT_TRUE(page.Has("/page.js"));
  for (const char* path : {"", "/page", "/page.js/", "/../page.js", "/index.html"}) {
    EXPECT_FALSE(page.Has(path)) << path;
  }
  EXPECT_FALSE(WebPage({}).Has("/"));
}

TEST(WebPageTest, CompressesForWhoeverAcceptsIt) {
  const WebPage page(kAssets);
  for (const auto& [accepted, compressed] :
       {std::pair("gzip", true), {"br, GZIP;q=0.5", true}, {"br", false}, {"gzip;q=0", false},
        {"gzip;q=0.0, br", false}, {"x-gzip-like", false}}) {
    const HttpResponse response = page.Answer(Get("/page.js", {{"accept-encoding", accepted}}));
    EXPECT_EQ(FieldOf(response, "content-encoding"), compressed ? "gzip" : "") << accepted;
    EXPECT_EQ(compressed ? Gunzip(response.body) : response.body, kScript) << accepted;
    EXPECT_EQ(FieldOf(response, "vary"), "accept-encoding");
  }
  // Compressed, it would be larger.
  const HttpResponse small = page.Answer(Get("/", {{"accept-encoding", "gzip"}}));
  EXPECT_EQ(FieldOf(small, "content-encoding"), "");
}

TEST(WebPageTest, AClientThatHasTheFileGetsNoBody) {
  const WebPage page(kAssets);
  const std::string etag = FieldOf(page.Answer(Get("/page.js")), "etag");
  EXPECT_NE(etag, FieldOf(page.Answer(Get("/")), "etag"));
  for (const std::string& known : {etag, etag.substr(2), "\"other\", " + etag}) {
    const HttpResponse response = page.Answer(Get("/page.js", {{"if-none-match", known}}));
    EXPECT_EQ(response.status, 304) << known;
    EXPECT_EQ(response.body, "");
    EXPECT_EQ(FieldOf(response, "etag"), etag);
    const std::string wire = SerializeResponse(response, {});
    EXPECT_THAT(wire, HasSubstr("HTTP/1.1 304 Not Modified\r\n"));
    EXPECT_EQ(wire.find("content-length"), std::string::npos);
  }
  EXPECT_EQ(page.Answer(Get("/page.js", {{"if-none-match", "W/\"0\""}})).status, 200);
}

}  // namespace
}  // namespace moraine
