#include "server/access.h"

#include <gtest/gtest.h>

namespace moraine {
namespace {

AccessPolicy PolicyWith(void (*set)(AccessOptions*)) {
  AccessOptions options;
  set(&options);
  return AccessPolicy(options);
}

RequestHead WithField(const std::string& name, const std::string& value) {
  RequestHead head;
  head.method = "GET";
  head.target = "/health";
  head.fields.push_back({name, value});
  return head;
}

int HostStatus(const AccessPolicy& policy, const std::string& host) {
  const auto error = policy.CheckHost(WithField("host", host));
  return error ? error->http_status : 200;
}

TEST(AccessTest, HostsOfAServerOnLoopback) {
  const AccessPolicy policy =
      PolicyWith([](AccessOptions* o) { o->allowed_hosts = {"Models.Example"}; });
  const std::pair<const char*, int> cases[] = {
      {"localhost", 200},          {"LOCALHOST:8080", 200},     {"app.localhost", 200},
      {"127.0.0.1", 200},          {"127.8.9.1:1", 200},        {"[::1]:8080", 200},
      {"models.example", 200},     {"models.example:80", 200},  {"models.example.", 200},
      {"evil.example", 403},       {"127.0.0.1.evil.org", 403}, {"localhost.evil.org", 403},
      {"evillocalhost", 403},      {"192.168.1.5", 403},        {"x.models.example", 403},
      {"", 400},                   {":80", 400},                {"localhost:80x", 400},
      {"localhost:123456789", 400}, {"[::1", 400},              {"user@localhost", 403},
      {"localhost, evil.org", 403}, {"0.0.0.0", 403},
  };
  for (const auto& [host, status] : cases) EXPECT_EQ(HostStatus(policy, host), status) << host;
}

TEST(AccessTest, AServerOnEveryAddressTakesLiteralAddressesButNoNames) {
  const AccessPolicy policy = PolicyWith([](AccessOptions* o) { o->bind_address = "0.0.0.0"; });
  EXPECT_EQ(HostStatus(policy, "192.168.1.5:8080"), 200);
  EXPECT_EQ(HostStatus(policy, "[fe80::1]:8080"), 200);
  EXPECT_EQ(HostStatus(policy, "rebound.evil.org"), 403);
  const AccessPolicy bound = PolicyWith([](AccessOptions* o) { o->bind_address = "192.168.1.5"; });
  EXPECT_EQ(HostStatus(bound, "192.168.1.5"), 200);
  EXPECT_EQ(HostStatus(bound, "192.168.1.6"), 403);
}

TEST(AccessTest, OnlyOldClientsMayLeaveHostOut) {
  const AccessPolicy policy({});
  RequestHead head;
  EXPECT_TRUE(policy.CheckHost(head));
  head.http_1_0 = true;
  EXPECT_FALSE(policy.CheckHost(head));
}

TEST(AccessTest, KeyComparison) {
  EXPECT_TRUE(EqualInConstantTime("secret", "secret"));
  for (const char* wrong : {"", "s", "secres", "Secret", "secret ", "secretsecret"}) {
    EXPECT_FALSE(EqualInConstantTime("secret", wrong)) << wrong;
  }
}

TEST(AccessTest, KeysOfBothForms) {
  const AccessPolicy policy = PolicyWith([](AccessOptions* o) { o->api_key = "k"; });
  EXPECT_FALSE(policy.CheckKey(WithField("authorization", "Bearer k")));
  EXPECT_FALSE(policy.CheckKey(WithField("authorization", "BEARER   k ")));
  EXPECT_FALSE(policy.CheckKey(WithField("x-api-key", "k")));
  EXPECT_TRUE(policy.CheckKey(WithField("authorization", "Basic k")));
  EXPECT_TRUE(policy.CheckKey(WithField("authorization", "k")));
  EXPECT_TRUE(policy.CheckKey(WithField("authorization", "Bearer")));
  EXPECT_TRUE(policy.CheckKey(RequestHead()));
  EXPECT_FALSE(AccessPolicy({}).CheckKey(RequestHead()));
}

TEST(AccessTest, PreflightReflectsOnlyHeaderNames) {
  const AccessPolicy policy =
      PolicyWith([](AccessOptions* o) { o->cors_origins = {"https://a.example"}; });
  RequestHead head = WithField("origin", "https://a.example");
  head.fields.push_back({"access-control-request-headers", "x-a<script>"});
  const HttpResponse response = policy.Preflight(head, "POST");
  bool origin = false;
  for (const HttpField& field : response.fields) {
    EXPECT_NE(field.name, "access-control-allow-headers");
    origin |= field.name == "access-control-allow-origin";
  }
  EXPECT_TRUE(origin);
  for (const char* other : {"https://b.example", "https://a.example.evil.org", "null", ""}) {
    const HttpResponse foreign = policy.Preflight(WithField("origin", other), "POST");
    for (const HttpField& field : foreign.fields) {
      EXPECT_NE(field.name, "access-control-allow-origin") << other;
    }
  }
}

TEST(HttpMessageTest, QueryAndPath) {
  RequestHead head;
  head.target = "/stats?a=1&layers=0&flag&b=";
  EXPECT_EQ(head.path(), "/stats");
  EXPECT_EQ(head.QueryValue("layers"), "0");
  EXPECT_EQ(head.QueryValue("a"), "1");
  EXPECT_EQ(head.QueryValue("flag"), "");
  EXPECT_EQ(head.QueryValue("ayers"), "");
  EXPECT_EQ(PercentDecode("a%20b%2Fc%zz%4"), "a b/c%zz%4");
  EXPECT_EQ(FrameChunk(std::string(26, 'x')), "1a\r\n" + std::string(26, 'x') + "\r\n");
}

}  // namespace
}  // namespace moraine
