// The server over the FakeService, for tests of clients: prints its URL, serves until stdin ends.
#include <cstdio>

#include "fake_service.h"
#include "server/http_server.h"

int main() {
  moraine::FakeService service(/*queue_limit=*/1);
  moraine::HttpServerOptions options;
  options.port = 0;
  options.api.access.api_key = "test-key";
  options.ping_interval = std::chrono::milliseconds(50);
  auto server = moraine::HttpServer::Start(options, &service);
  if (!server.ok()) {
    std::fprintf(stderr, "%s\n", server.status().ToString().c_str());
    return 1;
  }
  std::printf("%s\n", (*server)->url().c_str());
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
  return 0;
}
