// The web page and the residency stream over sockets.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

#include "fake_service.h"
#include "raw_client.h"
#include "server/http_server.h"

namespace moraine {
namespace {

using testing::HasSubstr;

constexpr std::array<WebAsset, 1> kPage = {{{"/", "text/html; charset=utf-8", "<!doctype html>"}}};

class ResidencyHttpTest : public testing::Test {
 protected:
  ResidencyHttpTest() {
    options_.port = 0;
    options_.api.page = kPage;
    options_.api.access.api_key = "secret";
  }
  void Start() {
    auto server = HttpServer::Start(options_, &service_);
    ASSERT_TRUE(server.ok()) << server.status().ToString();
    server_ = std::move(*server);
  }
  uint16_t port() const { return server_->port(); }
  void Publish(uint32_t tokens) {
    auto snapshot = std::make_unique<ResidencySnapshot>();
    snapshot->stats.model = "fake model";
    snapshot->stats.decode.tokens = tokens;
    service_.residency_feed()->Publish(std::move(snapshot));
  }
  // Of the next chunk.
  std::string ReadChunk(RawClient* client) {
    const size_t length = std::stoul(client->ReadUntil("\r\n"), nullptr, 16);
    std::string chunk;
    while (chunk.size() < length + 2) chunk += client->ReadUntil("\n");
    return chunk.substr(0, length);
  }
  std::string OpenStream(RawClient* client) {
    client->Get("/residency/stream", kKey);
    return client->ReadUntil("\r\n\r\n");
  }

  static inline const std::string kKey = "x-api-key: secret\r\n";
  FakeService service_{2};
  HttpServerOptions options_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(ResidencyHttpTest, ThePageNeedsNoKeyAndAllElseDoes) {
  Start();
  RawClient client(port());
  client.Get("/");
  auto response = client.Read();
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.body, "<!doctype html>");
  EXPECT_THAT(response.head, HasSubstr("content-security-policy: default-src 'none';"));
  EXPECT_THAT(response.head, HasSubstr("content-type: text/html; charset=utf-8\r\n"));
  client.Get("/residency/stream");
  EXPECT_EQ(client.Read().status, 401);
  client.Post("/", "{}");
  EXPECT_EQ(client.Read().status, 405);
  client.Send("GET / HTTP/1.1\r\nhost: rebound.example\r\n\r\n");
  EXPECT_EQ(client.Read().status, 403);
}

TEST_F(ResidencyHttpTest, ABuildWithoutThePageHasNothingThere) {
  options_.api.page = {};
  Start();
  RawClient client(port());
  client.Get("/", kKey);
  EXPECT_EQ(client.Read().status, 404);
}

TEST_F(ResidencyHttpTest, StreamsAFullFrameAndThenWhatChanges) {
  Start();
  RawClient client(port());
  const std::string head = OpenStream(&client);
  EXPECT_THAT(head, HasSubstr("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(head, HasSubstr("content-type: application/octet-stream\r\n"));
  EXPECT_THAT(head, HasSubstr("transfer-encoding: chunked\r\n"));
  EXPECT_TRUE(service_.residency_feed()->watched());
  Publish(5);
  const std::string full = ReadChunk(&client);
  ASSERT_GT(full.size(), 6u);
  EXPECT_EQ(full[4], 1);
  EXPECT_THAT(full, HasSubstr(R"("model":"fake model")"));
  Publish(6);
  const std::string delta = ReadChunk(&client);
  EXPECT_EQ(delta[4], 2);
  EXPECT_LT(delta.size(), 64u);
}

// Watching ends with the connection, whoever ends it.
TEST_F(ResidencyHttpTest, ViewersThatGoAreForgotten) {
  Start();
  for (int round = 0; round < 2; ++round) {
    std::vector<std::unique_ptr<RawClient>> viewers;
    for (int i = 0; i < ResidencyStream::kViewerLimit; ++i) {
      viewers.push_back(std::make_unique<RawClient>(port()));
      EXPECT_THAT(OpenStream(viewers.back().get()), HasSubstr("200 OK"));
    }
    RawClient late(port());
    late.Get("/residency/stream", kKey);
    const auto response = late.Read();
    EXPECT_EQ(response.status, 503);
    EXPECT_THAT(response.body, HasSubstr("too_many_viewers"));
    viewers.clear();
    // A request on a connection of its own is answered after the timers that came before it.
    while (service_.residency_feed()->watched()) {
      RawClient other(port());
      other.Get("/health");
      EXPECT_EQ(other.Read().status, 200);
    }
  }
}

TEST_F(ResidencyHttpTest, ShutdownEndsStreamsWhole) {
  Start();
  RawClient client(port());
  OpenStream(&client);
  Publish(1);
  ReadChunk(&client);
  server_->Shutdown(std::chrono::seconds(60));
  EXPECT_EQ(client.ReadToEnd(), "0\r\n\r\n");
  EXPECT_FALSE(service_.residency_feed()->watched());
}

TEST_F(ResidencyHttpTest, AModelThatLoadsHasNoStreamYet) {
  service_.set_ready(false);
  Start();
  RawClient client(port());
  client.Get("/residency/stream", kKey);
  EXPECT_EQ(client.Read().status, 503);
  client.Get("/");
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(ResidencyHttpTest, AnOldClientGetsTheSameWithoutChunks) {
  Start();
  RawClient client(port());
  client.Send("GET /residency/stream HTTP/1.0\r\n" + kKey + "\r\n");
  EXPECT_EQ(client.ReadUntil("\r\n\r\n").find("transfer-encoding"), std::string::npos);
  Publish(1);
  EXPECT_THAT(client.ReadUntil("step_numbers"), HasSubstr(R"({"version":1)"));
}

TEST_F(ResidencyHttpTest, AskingOnlyForTheHeadWatchesNothing) {
  Start();
  RawClient client(port());
  client.Send("HEAD /residency/stream HTTP/1.1\r\nhost: localhost\r\n" + kKey + "\r\n");
  EXPECT_THAT(client.ReadUntil("\r\n\r\n"), HasSubstr("application/octet-stream"));
  client.Get("/health");
  EXPECT_EQ(client.Read().status, 200);
  EXPECT_FALSE(service_.residency_feed()->watched());
}

}  // namespace
}  // namespace moraine
