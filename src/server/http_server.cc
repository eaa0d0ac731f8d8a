#include "server/http_server.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <thread>

#include "base/log.h"
#include "server/connection.h"

namespace moraine {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

namespace {

// Tokenizing is 10 MB/s a thread; two, so that one long prompt does not hold up a short one.
constexpr int kWorkerThreads = 2;
// Wait after accept fails for lack of descriptors or memory.
constexpr std::chrono::milliseconds kAcceptPause{100};
// For connections that do not end after their generation was cancelled: a client that does not read.
constexpr std::chrono::seconds kCloseTimeout{3};

// Without an allocation, on the accepting thread: a flood must not cost more than this.
constexpr std::string_view kTooManyConnections =
    "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: 109\r\n"
    "retry-after: 1\r\nconnection: close\r\n\r\n"
    R"({"error":{"message":"too many connections","type":"server_error","param":null,"code":"too_many_connections"}})";

Status AsioError(const std::string& what, const error_code& ec) {
  return IoError(what + ": " + ec.message());
}

}  // namespace

class HttpServer::Impl {
 public:
  ~Impl() { Shutdown(std::chrono::milliseconds(0)); }

  Status Start(const HttpServerOptions& options, GenerationService* service);
  void Shutdown(std::chrono::milliseconds grace);
  tcp::endpoint endpoint;

 private:
  Status Listen(const HttpServerOptions& options);
  Status TakeOver(int listening_socket);
  asio::awaitable<void> Accept();
  void BeginDrain(std::chrono::milliseconds grace);
  void CancelAll();
  void CloseAll();
  // A copy, since connections leave the set while they are visited.
  std::vector<Connection*> Connections() const {
    return {state_->connections.begin(), state_->connections.end()};
  }

  asio::io_context io_{1};
  tcp::acceptor acceptor_{io_};
  asio::steady_timer drain_timer_{io_};
  asio::thread_pool workers_{kWorkerThreads};
  std::unique_ptr<ApiHandler> handler_;
  std::shared_ptr<ServerState> state_ = std::make_shared<ServerState>();
  std::thread thread_;
};

Status HttpServer::Impl::Listen(const HttpServerOptions& options) {
  error_code ec;
  const std::string address = options.host == "localhost" ? "127.0.0.1" : options.host;
  const auto ip = asio::ip::make_address(address, ec);
  if (ec) return InvalidArgument(fmt::format("--host: expected an IP address, found {}", options.host));
  const tcp::endpoint wanted(ip, options.port);
  acceptor_.open(wanted.protocol(), ec);
  if (ec) return AsioError("socket", ec);
  acceptor_.set_option(tcp::acceptor::reuse_address(true), ec);
  if (ec) return AsioError("SO_REUSEADDR", ec);
  acceptor_.bind(wanted, ec);
  if (ec) return AsioError(fmt::format("cannot listen on {}:{}", address, options.port), ec);
  acceptor_.listen(asio::socket_base::max_listen_connections, ec);
  if (ec) return AsioError("listen", ec);
  return OkStatus();
}

// The socket listens already; its address is not ours to choose.
Status HttpServer::Impl::TakeOver(int listening_socket) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  error_code ec;
  if (::getsockname(listening_socket, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    ec.assign(errno, boost::system::system_category());
    return AsioError("the socket that was handed over", ec);
  }
  acceptor_.assign(address.ss_family == AF_INET6 ? tcp::v6() : tcp::v4(), listening_socket, ec);
  if (ec) return AsioError("the socket that was handed over", ec);
  return OkStatus();
}

Status HttpServer::Impl::Start(const HttpServerOptions& options, GenerationService* service) {
  state_->options = options;
  if (options.listening_socket) {
    RETURN_IF_ERROR(TakeOver(*options.listening_socket));
  } else {
    RETURN_IF_ERROR(Listen(options));
  }
  endpoint = acceptor_.local_endpoint();
  state_->options.api.access.bind_address = endpoint.address().to_string();
  handler_ = std::make_unique<ApiHandler>(state_->options.api, service);
  state_->handler = handler_.get();
  state_->workers = &workers_;
  asio::co_spawn(io_, Accept(), asio::detached);
  thread_ = std::thread([this] { io_.run(); });
  return OkStatus();
}

asio::awaitable<void> HttpServer::Impl::Accept() {
  constexpr auto use = asio::as_tuple(asio::use_awaitable);
  asio::steady_timer pause(io_);
  while (!state_->draining) {
    auto [ec, socket] = co_await acceptor_.async_accept(use);
    if (state_->draining) co_return;
    if (ec) {
      LOG_WARN("accept: {}", ec.message());
      pause.expires_after(kAcceptPause);
      co_await pause.async_wait(use);
      continue;
    }
    if (state_->connections.size() >= state_->options.connection_limit) {
      socket.non_blocking(true, ec);
      if (!ec) socket.write_some(asio::buffer(kTooManyConnections), ec);
      continue;
    }
    // Tokens are small writes that must not wait for each other (Nagle).
    socket.set_option(tcp::no_delay(true), ec);
    ServeConnection(std::move(socket), state_);
  }
}

void HttpServer::Impl::BeginDrain(std::chrono::milliseconds grace) {
  state_->draining = true;
  error_code ignored;
  acceptor_.close(ignored);
  state_->on_connection_closed = [this] {
    if (state_->connections.empty()) drain_timer_.cancel();
  };
  for (Connection* connection : Connections()) connection->Drain();
  if (state_->connections.empty()) return;
  drain_timer_.expires_after(grace);
  drain_timer_.async_wait([this](const error_code& cancelled) {
    if (!cancelled) CancelAll();
  });
}

void HttpServer::Impl::CancelAll() {
  for (Connection* connection : Connections()) connection->CancelGeneration();
  if (state_->connections.empty()) return;
  drain_timer_.expires_after(kCloseTimeout);
  drain_timer_.async_wait([this](const error_code& cancelled) {
    if (!cancelled) CloseAll();
  });
}

void HttpServer::Impl::CloseAll() {
  for (Connection* connection : Connections()) connection->Close();
}

void HttpServer::Impl::Shutdown(std::chrono::milliseconds grace) {
  if (!thread_.joinable()) return;
  asio::post(io_, [this, grace] { BeginDrain(grace); });
  // The thread ends when there is no connection, timer or unfinished generation left.
  thread_.join();
  workers_.join();
}

HttpServer::HttpServer() : impl_(std::make_unique<Impl>()) {}
HttpServer::~HttpServer() = default;

Result<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpServerOptions& options,
                                                      GenerationService* service) {
  std::unique_ptr<HttpServer> server(new HttpServer());
  RETURN_IF_ERROR(server->impl_->Start(options, service));
  return server;
}

uint16_t HttpServer::port() const { return impl_->endpoint.port(); }

std::string HttpServer::url() const {
  const auto& endpoint = impl_->endpoint;
  const std::string address = endpoint.address().to_string();
  return endpoint.address().is_v6() ? fmt::format("http://[{}]:{}", address, endpoint.port())
                                    : fmt::format("http://{}:{}", address, endpoint.port());
}

void HttpServer::Shutdown(std::chrono::milliseconds grace) { impl_->Shutdown(grace); }

}  // namespace moraine
