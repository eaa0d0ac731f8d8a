// What the tests of the running server share: the server over a scripted service, and how its answers are
// taken apart.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "fake_service.h"
#include "raw_client.h"
#include "server/http_server.h"

namespace moraine {

inline std::string ChatBody(const std::string& text, const std::string& more = "") {
  return R"({"messages":[{"role":"user","content":")" + text + "\"}]" + more + "}";
}
inline const std::string kStream = R"(,"stream":true)";

inline std::string ErrorCode(const RawClient::Response& response) {
  const nlohmann::ordered_json body = nlohmann::ordered_json::parse(response.body, nullptr, false);
  if (!body.is_object() || !body.contains("error")) return "no error object: " + response.body;
  for (const char* field : {"message", "type", "param", "code"}) {
    if (!body["error"].contains(field)) return std::string("error lacks ") + field;
  }
  return body["error"]["code"].is_string() ? body["error"]["code"].get<std::string>() : "";
}

// Undoes the chunked coding; the stream must be whole.
inline std::string Unchunk(std::string_view text) {
  std::string out;
  for (;;) {
    const size_t line = text.find("\r\n");
    if (line == std::string_view::npos) return out + "<truncated>";
    const size_t size = std::stoul(std::string(text.substr(0, line)), nullptr, 16);
    if (size == 0) return out;
    out += text.substr(line + 2, size);
    text.remove_prefix(line + 2 + size + 2);
  }
}

class HttpServerTest : public testing::Test {
 protected:
  HttpServerTest() {
    options_.port = 0;
    options_.api.unix_time_s = [] { return int64_t{1700000001}; };
    options_.api.random_bits = [] { return uint64_t{0xABCDEF}; };
    options_.disconnect_poll_interval = std::chrono::milliseconds(5);
  }
  void Start() {
    auto server = HttpServer::Start(options_, &service_);
    ASSERT_TRUE(server.ok()) << server.status().ToString();
    server_ = std::move(*server);
  }
  uint16_t port() const { return server_->port(); }

  FakeService service_{2};
  HttpServerOptions options_;
  std::unique_ptr<HttpServer> server_;
};

inline nlohmann::ordered_json PostJson(RawClient& client, const std::string& path,
                                       const std::string& body) {
  client.Post(path, body);
  return nlohmann::ordered_json::parse(client.Read().body, nullptr, false);
}

// The data of a stream's events, [DONE] left out.
inline std::vector<nlohmann::ordered_json> Events(const std::string& stream) {
  std::vector<nlohmann::ordered_json> events;
  for (size_t at = stream.find("data: {"); at != std::string::npos;
       at = stream.find("data: {", at + 1)) {
    const size_t end = stream.find("\n\n", at);
    events.push_back(nlohmann::ordered_json::parse(stream.substr(at + 6, end - at - 6)));
  }
  return events;
}

inline constexpr const char* kTools =
    R"(,"tools":[{"type":"function","function":{"name":"get_weather","parameters":{"type":"object"}}}])";
inline const std::string kSayCall =
    R"([say]<think>Hm.</think>Wait.<tool_call>\n{\"name\": \"get_weather\", \"arguments\": )"
    R"({\"city\": \"Köln\"}}\n</tool_call>\n<tool_call>{\"name\": \"now\"}</tool_call>[/say])";

}  // namespace moraine
