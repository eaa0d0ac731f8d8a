// A client of bytes: sends exactly what a test says and reads what comes, so that tests can misbehave.
// Every wait ends after 20 s, which fails the test.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <string_view>

namespace moraine {

class RawClient {
 public:
  explicit RawClient(uint16_t port) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
    timeval limit{.tv_sec = 20, .tv_usec = 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  }
  ~RawClient() { Close(); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  bool connected() const { return connected_; }
  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }
  // False if the peer has closed.
  bool Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }
  void Post(const std::string& path, const std::string& body, const std::string& fields = "") {
    Send("POST " + path + " HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n" +
         fields + "content-length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
  }
  void Get(const std::string& path, const std::string& fields = "") {
    Send("GET " + path + " HTTP/1.1\r\nhost: localhost\r\n" + fields + "\r\n");
  }

  // All bytes up to and including `end`; what follows stays for the next call. Fails the test if the
  // connection ends first.
  std::string ReadUntil(const std::string& end) {
    for (;;) {
      const size_t found = buffer_.find(end);
      if (found != std::string::npos) {
        std::string out = buffer_.substr(0, found + end.size());
        buffer_.erase(0, out.size());
        return out;
      }
      if (!Fill()) {
        ADD_FAILURE() << "no \"" << end << "\" before the end, got: " << buffer_;
        return "";
      }
    }
  }
  struct Response {
    int status = 0;
    std::string head, body;
  };
  // One response with a content-length (or none).
  Response Read() {
    Response response;
    response.head = ReadUntil("\r\n\r\n");
    if (response.head.size() > 12) response.status = std::stoi(response.head.substr(9, 3));
    const size_t at = response.head.find("content-length: ");
    const size_t length = at == std::string::npos ? 0 : std::stoul(response.head.substr(at + 16));
    while (buffer_.size() < length && Fill()) {
    }
    response.body = buffer_.substr(0, length);
    buffer_.erase(0, length);
    return response;
  }
  // Everything until the peer closes. A reset counts as an end.
  std::string ReadToEnd() {
    while (Fill()) {
    }
    EXPECT_FALSE(timed_out_) << "the server did not close; got: " << buffer_;
    return std::move(buffer_);
  }

 private:
  bool Fill() {
    char bytes[4096];
    const ssize_t count = recv(fd_, bytes, sizeof(bytes), 0);
    if (count > 0) buffer_.append(bytes, static_cast<size_t>(count));
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) timed_out_ = true;
    return count > 0;
  }

  int fd_;
  bool connected_ = false, timed_out_ = false;
  std::string buffer_;
};

}  // namespace moraine
