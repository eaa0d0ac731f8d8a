// The running server against raw sockets: refusals, limits, disconnects, shutdown.
#include "server/http_server.h"

#include <gtest/gtest.h>

#include <future>
#include <nlohmann/json.hpp>

#include "http_server_fixture.h"

namespace moraine {
namespace {

using nlohmann::ordered_json;
using std::chrono::milliseconds;

TEST_F(HttpServerTest, HeadHasTheHeadOnly) {
  Start();
  RawClient client(port());
  client.Send("HEAD /health HTTP/1.1\r\nhost: localhost\r\n\r\n");
  EXPECT_NE(client.ReadUntil("\r\n\r\n").find("content-length: 15\r\n"), std::string::npos);
  client.Get("/health");
  EXPECT_EQ(client.Read().head.rfind("HTTP/1.1 200", 0), 0u);  // no body was in between
}

TEST_F(HttpServerTest, AnswersWhileLoading) {
  service_.set_ready(false);
  Start();
  RawClient client(port());
  client.Get("/health");
  RawClient::Response response = client.Read();
  EXPECT_EQ(response.status, 503);
  EXPECT_EQ(response.body, R"({"status":"loading"})");
  client.Get("/v1/models");
  EXPECT_EQ(client.Read().status, 200);
  client.Get("/metrics");
  EXPECT_NE(client.Read().body.find("moraine_ready 0\n"), std::string::npos);
  client.Get("/stats");
  EXPECT_EQ(ErrorCode(client.Read()), "model_loading");
  client.Post("/v1/chat/completions", ChatBody("hi"));
  response = client.Read();
  EXPECT_EQ(response.status, 503);
  EXPECT_NE(response.head.find("retry-after: 2\r\n"), std::string::npos);
  service_.set_ready(true);
  client.Post("/v1/chat/completions", ChatBody("hi"));
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(HttpServerTest, RefusalsHaveTheirStatusAndAnErrorObject) {
  Start();
  const std::string json = "content-type: application/json\r\n";
  struct Case {
    const char* what;
    std::string request;
    int status;
    const char* code;
    const char* head;  // must be in the response's head
  };
  const Case cases[] = {
      {"unknown path", "GET /v2 HTTP/1.1\r\nhost: localhost\r\n\r\n", 404, "not_found", ""},
      {"wrong method", "GET /v1/completions HTTP/1.1\r\nhost: localhost\r\n\r\n", 405,
       "method_not_allowed", "allow: POST, OPTIONS\r\n"},
      {"wrong method", "DELETE /health HTTP/1.1\r\nhost: localhost\r\n\r\n", 405,
       "method_not_allowed", "allow: GET, HEAD, OPTIONS\r\n"},
      {"foreign host", "GET /health HTTP/1.1\r\nhost: evil.example\r\n\r\n", 403,
       "host_not_allowed", "x-should-retry: false\r\n"},
      {"host that begins like ours", "GET /health HTTP/1.1\r\nhost: localhost.evil.example\r\n\r\n",
       403, "host_not_allowed", ""},
      {"host that begins like loopback", "GET /health HTTP/1.1\r\nhost: 127.0.0.1.evil.example\r\n\r\n",
       403, "host_not_allowed", ""},
      {"no host", "GET /health HTTP/1.1\r\n\r\n", 400, "bad_host", ""},
      {"two hosts", "GET /health HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n", 400,
       "bad_host", ""},
      {"text", "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\n"
               "content-length: 2\r\n\r\n{}", 415, "bad_request", ""},
      {"no type", "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{}",
       415, "bad_request", ""},
      {"compressed", "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n" + json +
                         "content-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}",
       415, "bad_request", ""},
      {"not JSON", "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n" + json +
                       "content-length: 2\r\n\r\n{x", 400, "", ""},
      {"bad UTF-8", "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n" + json +
                        "content-length: 14\r\n\r\n{\"prompt\":\"\xff\"}", 400, "", ""},
  };
  RawClient client(port());
  for (const Case& c : cases) {
    client.Send(c.request);
    const RawClient::Response response = client.Read();
    EXPECT_EQ(response.status, c.status) << c.what;
    EXPECT_EQ(ErrorCode(response), c.code) << c.what << ": " << response.body;
    EXPECT_NE(response.head.find(c.head), std::string::npos) << c.what << ": " << response.head;
    EXPECT_NE(response.head.find("connection: keep-alive"), std::string::npos) << c.what;
  }
}

TEST_F(HttpServerTest, ErrorsOfTheServiceBecomeRealStatuses) {
  Start();
  RawClient client(port());
  for (const std::string& stream : {std::string(), kStream}) {
    client.Post("/v1/chat/completions", ChatBody("[too-long]", stream));
    RawClient::Response response = client.Read();
    EXPECT_EQ(response.status, 400);
    EXPECT_EQ(ErrorCode(response), "context_length_exceeded");
    client.Post("/v1/chat/completions", ChatBody("[refuse]", stream));
    response = client.Read();
    EXPECT_EQ(response.status, 400);
    EXPECT_NE(response.body.find("the template refuses"), std::string::npos);
    client.Post("/v1/completions", R"({"prompt":"","stream":)" + std::string(stream.empty() ? "false" : "true") + "}");
    EXPECT_EQ(client.Read().status, 400);
  }
  client.Post("/v1/chat/completions", ChatBody("[fail-first]"));
  RawClient::Response response = client.Read();
  EXPECT_EQ(response.status, 500);
  EXPECT_NE(response.body.find("expert 7 of layer 3"), std::string::npos);
  EXPECT_NE(response.head.find("x-should-retry: false\r\n"), std::string::npos);
  client.Post("/v1/chat/completions", ChatBody("hi", R"(,"model":"gpt-5")"));
  EXPECT_EQ(ErrorCode(client.Read()), "model_not_found");
}

TEST_F(HttpServerTest, AFailureInMidStreamIsAnErrorEventAndTheEnd) {
  Start();
  RawClient client(port());
  client.Post("/v1/chat/completions", ChatBody("[fail]", kStream));
  client.ReadUntil("\r\n\r\n");
  const std::string events = Unchunk(client.ReadToEnd());
  const std::string last = events.substr(events.rfind("data: "));
  EXPECT_EQ(last,
            R"(data: {"error":{"message":"pack 0 at 4096: Input/output error","type":"server_error",)"
            R"("param":null,"code":"io_error"}})"
            "\n\n");
  EXPECT_NE(events.find(R"("content":"Hello")"), std::string::npos);
  EXPECT_EQ(events.find("[DONE]"), std::string::npos);
}

TEST_F(HttpServerTest, DisconnectCancelsAStream) {
  Start();
  RawClient client(port());
  client.Post("/v1/chat/completions", ChatBody("[hold]", kStream));
  client.ReadUntil("Hello");
  client.Close();
  EXPECT_TRUE(service_.WaitFor([](const auto& c) { return c.cancelled == 1; }));
}

TEST_F(HttpServerTest, DisconnectCancelsAWholeAnswer) {
  Start();
  RawClient client(port());
  client.Post("/v1/chat/completions", ChatBody("[hold]"));
  ASSERT_TRUE(service_.WaitFor([](const auto& c) { return c.held == 1; }));
  client.Close();
  EXPECT_TRUE(service_.WaitFor([](const auto& c) { return c.cancelled == 1; }));
}

TEST_F(HttpServerTest, DisconnectCancelsPrefill) {
  Start();
  for (const std::string& stream : {std::string(), kStream}) {
    const int before = service_.counts().cancelled;
    RawClient client(port());
    client.Post("/v1/chat/completions", ChatBody("[prefill]", stream));
    ASSERT_TRUE(service_.WaitFor([&](const auto& c) { return c.held == before + 1; }));
    client.Close();
    EXPECT_TRUE(service_.WaitFor([&](const auto& c) { return c.cancelled == before + 1; }));
  }
}

TEST_F(HttpServerTest, DisconnectCancelsWhatWaitsInTheQueue) {
  Start();
  RawClient running(port());
  running.Post("/v1/chat/completions", ChatBody("[hold]", kStream));
  running.ReadUntil("Hello");
  for (const std::string& stream : {std::string(), kStream}) {
    RawClient waiting(port());
    const int before = service_.counts().submitted;
    waiting.Post("/v1/chat/completions", ChatBody("waits", stream));
    ASSERT_TRUE(service_.WaitFor([&](const auto& c) { return c.submitted == before + 1; }));
    waiting.Close();
    ASSERT_TRUE(service_.WaitFor([&](const auto& c) { return c.cancel_asked == before; }));
  }
  running.Close();
  EXPECT_TRUE(service_.WaitFor([](const auto& c) { return c.finished == 3; }));
  EXPECT_EQ(service_.counts().cancelled, 3);
  EXPECT_EQ(service_.counts().started, 1);
}

TEST_F(HttpServerTest, DisconnectIsSeenBehindAPipelinedRequest) {
  Start();
  RawClient client(port());
  client.Post("/v1/chat/completions", ChatBody("[hold]"));
  ASSERT_TRUE(service_.WaitFor([](const auto& c) { return c.held == 1; }));
  client.Get("/health");
  client.Close();
  EXPECT_TRUE(service_.WaitFor([](const auto& c) { return c.cancelled == 1; }));
}

TEST_F(HttpServerTest, PipelinedRequestsAreAnsweredInOrder) {
  Start();
  RawClient client(port());
  client.Send(
      "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\nGET /v2 HTTP/1.1\r\nhost: localhost\r\n\r\n");
  client.Post("/v1/chat/completions", ChatBody("hi"));
  client.Get("/health");
  EXPECT_EQ(client.Read().status, 200);
  EXPECT_EQ(client.Read().status, 404);
  EXPECT_NE(client.Read().body.find("Hello, w"), std::string::npos);
  EXPECT_EQ(client.Read().body, R"({"status":"ok"})");
}

TEST_F(HttpServerTest, PipelinedGarbageEndsTheConnection) {
  Start();
  RawClient client(port());
  client.Get("/health");
  client.Send("\x01\x02 garbage\r\n\r\n");
  EXPECT_EQ(client.Read().status, 200);
  const RawClient::Response response = client.Read();
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(ErrorCode(response), "malformed_http");
  client.ReadToEnd();
}

TEST_F(HttpServerTest, PingsWhileNothingHappens) {
  options_.ping_interval = milliseconds(10);
  Start();
  RawClient running(port());
  running.Post("/v1/chat/completions", ChatBody("[prefill]", kStream));
  running.ReadUntil(": ping, prefill 512/2048\n\n");
  // A stream that waits in the queue gets its head with the first ping.
  RawClient waiting(port());
  waiting.Post("/v1/chat/completions", ChatBody("waits", kStream));
  EXPECT_NE(waiting.ReadUntil(": ping\n\n").find("HTTP/1.1 200 OK"), std::string::npos);
  service_.Release();
  running.ReadUntil("data: [DONE]\n\n");
  waiting.ReadUntil("data: [DONE]\n\n");
}

TEST_F(HttpServerTest, FullQueueIs429WithRetryAfter) {
  Start();
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(std::make_unique<RawClient>(port()));
    clients.back()->Post("/v1/chat/completions", ChatBody("[hold]", kStream));
    // The first must have left the queue before it can be filled.
    ASSERT_TRUE(service_.WaitFor([&](const auto& c) { return c.submitted == i + 1 && c.held == 1; }));
  }
  RawClient refused(port());
  refused.Post("/v1/chat/completions", ChatBody("hi", kStream));
  const RawClient::Response response = refused.Read();
  EXPECT_EQ(response.status, 429);
  EXPECT_EQ(ErrorCode(response), "queue_full");
  EXPECT_NE(response.head.find("retry-after: 1\r\n"), std::string::npos);
  EXPECT_EQ(response.head.find("x-should-retry"), std::string::npos);
}

TEST_F(HttpServerTest, SlowHeadsAndBodiesAreCutOff) {
  options_.header_timeout = options_.body_timeout = milliseconds(30);
  Start();
  RawClient head(port());
  head.Send("GET /health HTTP/1.1\r\nhost: loc");
  EXPECT_EQ(head.ReadToEnd(), "");
  RawClient body(port());
  body.Send("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            "content-length: 100\r\n\r\n{");
  EXPECT_EQ(body.ReadToEnd(), "");
}

TEST_F(HttpServerTest, IdleConnectionsAreClosed) {
  options_.idle_timeout = milliseconds(30);
  Start();
  RawClient client(port());
  client.Get("/health");
  EXPECT_EQ(client.Read().status, 200);
  EXPECT_EQ(client.ReadToEnd(), "");
}

TEST_F(HttpServerTest, LimitsOfHeadAndBody) {
  options_.header_limit_bytes = 4096;
  options_.api.body_limit_bytes = 1000;
  Start();
  RawClient bomb(port());
  bomb.Send("GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + std::string(100'000, 'x') + "\r\n\r\n");
  RawClient::Response response = bomb.Read();
  EXPECT_EQ(response.status, 431);
  EXPECT_EQ(ErrorCode(response), "header_too_large");
  bomb.Close();
  // The client sends on for a while after the refusal; the answer must reach it all the same.
  RawClient oversize(port());
  oversize.Post("/v1/completions", std::string(500'000, ' '));
  response = oversize.Read();
  EXPECT_EQ(response.status, 413);
  EXPECT_EQ(ErrorCode(response), "body_too_large");
  EXPECT_NE(response.head.find("connection: close"), std::string::npos);
  RawClient chunked(port());
  chunked.Send("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
               "transfer-encoding: chunked\r\n\r\n800\r\n" + std::string(0x800, ' ') + "\r\n0\r\n\r\n");
  EXPECT_EQ(chunked.Read().status, 413);
}

TEST_F(HttpServerTest, OnlySomeLargeBodiesAtATime) {
  options_.large_body_limit = 1;
  Start();
  const std::string head =
      "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
      "expect: 100-continue\r\ncontent-length: 2000000\r\n\r\n";
  auto first = std::make_unique<RawClient>(port());
  first->Send(head);
  EXPECT_EQ(first->ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  RawClient second(port());
  second.Send(head);
  EXPECT_EQ(ErrorCode(second.Read()), "too_many_large_bodies");
  first->Send(R"({"prompt":"hi"})" + std::string(2'000'000 - 15, ' '));
  EXPECT_EQ(first->Read().status, 200);
  RawClient third(port());
  third.Send(head);
  EXPECT_EQ(third.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
}

TEST_F(HttpServerTest, ChunkedBodiesAndHttp10) {
  Start();
  RawClient chunked(port());
  chunked.Send("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
               "transfer-encoding: chunked\r\n\r\n5\r\n{\"pro\r\na\r\nmpt\":\"hi\"}\r\n0\r\n\r\n");
  EXPECT_EQ(chunked.Read().status, 200);
  RawClient smuggler(port());
  smuggler.Send("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                "transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n");
  EXPECT_EQ(smuggler.Read().status, 501);
  // No chunks for a client that does not know them: the stream ends with the connection.
  RawClient old(port());
  const std::string body = ChatBody("hi", kStream);
  old.Send("POST /v1/chat/completions HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: " +
           std::to_string(body.size()) + "\r\n\r\n" + body);
  EXPECT_EQ(old.ReadUntil("\r\n\r\n").find("transfer-encoding"), std::string::npos);
  const std::string events = old.ReadToEnd();
  EXPECT_EQ(events.rfind("data: {\"id\"", 0), 0u);
  EXPECT_TRUE(events.ends_with("data: [DONE]\n\n"));
}

TEST_F(HttpServerTest, ConnectionLimit) {
  options_.connection_limit = 2;
  Start();
  RawClient first(port()), second(port());
  first.Get("/health");
  second.Get("/health");
  EXPECT_EQ(first.Read().status, 200);
  EXPECT_EQ(second.Read().status, 200);
  RawClient third(port());
  const RawClient::Response response = third.Read();
  EXPECT_EQ(response.status, 503);
  EXPECT_EQ(ErrorCode(response), "too_many_connections");
  EXPECT_EQ(third.ReadToEnd(), "");
}

TEST_F(HttpServerTest, IdleConnectionsAreNotAmongTheRequestsThatAreLimited) {
  options_.busy_limit = 1;
  Start();
  std::vector<std::unique_ptr<RawClient>> idle;
  for (int round = 0; round < 2; ++round) {
    for (size_t i = 0; i < 5; ++i) {
      if (round == 0) idle.push_back(std::make_unique<RawClient>(port()));
      idle[i]->Get("/health");
      EXPECT_EQ(idle[i]->Read().status, 200) << round << " " << i;
    }
  }
  idle[0]->Send("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                "expect: 100-continue\r\ncontent-length: 15\r\n\r\n");
  EXPECT_EQ(idle[0]->ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  // Who is refused is not counted, however long it stays.
  for (size_t i = 1; i < 3; ++i) {
    idle[i]->Get("/health");
    const RawClient::Response response = idle[i]->Read();
    EXPECT_EQ(response.status, 503);
    EXPECT_EQ(ErrorCode(response), "too_many_requests");
    EXPECT_NE(response.head.find("retry-after: 1\r\n"), std::string::npos);
  }
  idle[0]->Send(R"({"prompt":"hi"})");
  EXPECT_EQ(idle[0]->Read().status, 200);
  idle[3]->Get("/health");
  EXPECT_EQ(idle[3]->Read().status, 200);
}

TEST_F(HttpServerTest, KeyAndCors) {
  options_.api.access.api_key = "secret";
  options_.api.access.cors_origins = {"https://app.example"};
  Start();
  RawClient client(port());
  client.Get("/v1/models");
  RawClient::Response response = client.Read();
  EXPECT_EQ(response.status, 401);
  EXPECT_EQ(ErrorCode(response), "invalid_api_key");
  EXPECT_NE(response.head.find("www-authenticate: Bearer\r\n"), std::string::npos);
  client.Get("/v1/models", "authorization: Bearer secret2\r\n");
  EXPECT_EQ(client.Read().status, 401);
  client.Get("/v1/models", "authorization: bearer secret\r\norigin: https://app.example\r\n");
  response = client.Read();
  EXPECT_EQ(response.status, 200);
  EXPECT_NE(response.head.find("access-control-allow-origin: https://app.example\r\n"),
            std::string::npos);
  client.Get("/stats", "x-api-key: secret\r\norigin: https://evil.example\r\n");
  response = client.Read();
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.head.find("access-control-allow-origin"), std::string::npos);
  client.Get("/health");
  EXPECT_EQ(client.Read().status, 200);
  client.Send("OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\norigin: https://app.example\r\n"
              "access-control-request-headers: authorization,x-stainless-os\r\n\r\n");
  response = client.Read();
  EXPECT_EQ(response.status, 204);
  EXPECT_NE(response.head.find("access-control-allow-headers: authorization,x-stainless-os\r\n"),
            std::string::npos);
  EXPECT_NE(response.head.find("access-control-allow-methods: POST, OPTIONS\r\n"), std::string::npos);
}

TEST_F(HttpServerTest, ShutdownLetsTheRunningRequestFinish) {
  Start();
  const uint16_t where = port();
  RawClient idle(where), running(where), waiting(where);
  idle.Get("/health");
  EXPECT_EQ(idle.Read().status, 200);
  running.Post("/v1/chat/completions", ChatBody("[hold]", kStream));
  running.ReadUntil("Hello");
  waiting.Post("/v1/chat/completions", ChatBody("waits"));
  ASSERT_TRUE(service_.WaitFor([](const auto& c) { return c.submitted == 2; }));
  auto shutdown = std::async(std::launch::async, [&] { server_->Shutdown(milliseconds(20'000)); });
  EXPECT_EQ(idle.ReadToEnd(), "");  // idle connections are closed at once
  EXPECT_FALSE(RawClient(where).connected());
  ASSERT_TRUE(service_.WaitFor([](const auto& c) { return c.cancel_asked == 1; }));
  service_.Release();
  EXPECT_TRUE(running.ReadToEnd().ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"));
  const RawClient::Response refused = waiting.Read();
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(ErrorCode(refused), "shutting_down");
  shutdown.get();
  EXPECT_EQ(service_.counts().cancelled, 1);
}

TEST_F(HttpServerTest, ShutdownCancelsAfterTheGracePeriod) {
  Start();
  RawClient stream(port()), whole(port());
  stream.Post("/v1/chat/completions", ChatBody("[hold]", kStream));
  stream.ReadUntil("Hello");
  server_->Shutdown(milliseconds(10));
  const std::string rest = stream.ReadToEnd();
  EXPECT_NE(rest.find(R"({"error":{"message":"the server is shutting down")"), std::string::npos)
      << rest;
  EXPECT_EQ(service_.counts().cancelled, 1);
}

TEST_F(HttpServerTest, DestructionWaitsForTheServicesLastEvent) {
  Start();
  RawClient client(port());
  client.Post("/v1/chat/completions", ChatBody("[hold]"));
  ASSERT_TRUE(service_.WaitFor([](const auto& c) { return c.held == 1; }));
  server_.reset();
  EXPECT_EQ(service_.counts().finished, 1);
  EXPECT_EQ(service_.counts().cancelled, 1);
}

TEST_F(HttpServerTest, StartNamesAnAddressInUse) {
  Start();
  HttpServerOptions second = options_;
  second.port = port();
  const auto server = HttpServer::Start(second, &service_);
  ASSERT_FALSE(server.ok());
  EXPECT_NE(server.status().message().find("127.0.0.1:" + std::to_string(port())),
            std::string::npos);
  second.host = "not an address";
  EXPECT_EQ(HttpServer::Start(second, &service_).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(HttpServerTest, TheBudgetIsChangedByPostWhenAdministrationIsOn) {
  options_.api.admin = true;
  Start();
  RawClient client(port());
  client.Post("/admin/ram-budget", R"({"ram_budget":"5GiB"})");
  auto response = client.Read();
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(ordered_json::parse(response.body),
            ordered_json({{"ram_budget_bytes", 5ull << 30},
                          {"minimum_bytes", 2ull << 30},
                          {"maximum_bytes", 8ull << 30}}));
  for (const auto& [body, message] :
       {std::pair(R"({"ram_budget":"1GiB"})", "the minimum is 2 GiB"),
        std::pair(R"({"ram_budget":5})", "expected a string"), std::pair("{}", "expected a size")}) {
    client.Post("/admin/ram-budget", body);
    response = client.Read();
    EXPECT_EQ(response.status, 400) << body;
    EXPECT_NE(response.body.find(message), std::string::npos) << response.body;
  }
  client.Get("/admin/ram-budget");
  EXPECT_EQ(client.Read().status, 405);
  service_.set_ready(false);
  client.Post("/admin/ram-budget", R"({"ram_budget":"5GiB"})");
  EXPECT_EQ(client.Read().status, 503);
}

TEST_F(HttpServerTest, WithoutAdministrationTheRouteDoesNotExist) {
  Start();
  RawClient client(port());
  client.Post("/admin/ram-budget", R"({"ram_budget":"5GiB"})");
  const auto response = client.Read();
  EXPECT_EQ(response.status, 404);
  EXPECT_EQ(ErrorCode(response), "not_found");
}

// The peer's address decides, and only where there is no key.
TEST(ApiHandlerTest, AdministrationFromAfarNeedsAKey) {
  FakeService service;
  for (const bool key : {false, true}) {
    ApiHandlerOptions options;
    options.admin = true;
    if (key) options.access.api_key = "secret";
    const ApiHandler handler(options, &service);
    RequestHead head;
    head.method = "POST";
    head.target = "/admin/ram-budget";
    head.fields = {{"host", "localhost"}, {"content-type", "application/json"}};
    if (key) head.fields.push_back({"authorization", "Bearer secret"});
    Route route = Route::kNone;
    const auto refusal = handler.CheckHead(head, &route);
    EXPECT_EQ(refusal.has_value(), !key);
    EXPECT_EQ(refusal ? refusal->status : 0, key ? 0 : 403);
    head.from_loopback = true;
    EXPECT_FALSE(handler.CheckHead(head, &route).has_value());
  }
}

}  // namespace
}  // namespace moraine
