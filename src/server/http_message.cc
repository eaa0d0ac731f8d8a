#include "server/http_message.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>

#include "base/check.h"

namespace moraine {
namespace {

// RFC 9110 5.6.7: "Sun, 06 Nov 1994 08:49:37 GMT". Not strftime, whose names depend on the locale.
std::string HttpDate(int64_t unix_time_s) {
  static constexpr const char* kDays[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
  static constexpr const char* kMonths[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                            "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  const time_t seconds = static_cast<time_t>(unix_time_s);
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  return fmt::format("{}, {:02} {} {} {:02}:{:02}:{:02} GMT", kDays[parts.tm_wday], parts.tm_mday,
                     kMonths[parts.tm_mon], parts.tm_year + 1900, parts.tm_hour, parts.tm_min,
                     parts.tm_sec);
}

std::string SerializeHead(const HttpResponse& response, const WireOptions& wire,
                          std::string_view framing) {
  std::string out = fmt::format("HTTP/1.1 {} {}\r\n", response.status, ReasonPhrase(response.status));
  out += fmt::format("date: {}\r\nserver: moraine\r\n", HttpDate(wire.unix_time_s));
  if (!response.content_type.empty()) {
    out += fmt::format("content-type: {}\r\nx-content-type-options: nosniff\r\n",
                       response.content_type);
  }
  for (const HttpField& field : response.fields) {
    CHECK(field.value.find_first_of("\r\n") == std::string::npos, "header injection: " + field.name);
    out += fmt::format("{}: {}\r\n", field.name, field.value);
  }
  out += framing;
  out += wire.keep_alive && !response.close ? "connection: keep-alive\r\n\r\n"
                                            : "connection: close\r\n\r\n";
  return out;
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

const std::string* RequestHead::Find(std::string_view name) const {
  for (const HttpField& field : fields) {
    if (field.name == name) return &field.value;
  }
  return nullptr;
}

size_t RequestHead::Count(std::string_view name) const {
  return static_cast<size_t>(std::count_if(fields.begin(), fields.end(), [&](const HttpField& field) {
    return field.name == name;
  }));
}

std::string_view RequestHead::path() const {
  return std::string_view(target).substr(0, target.find('?'));
}

std::string_view RequestHead::QueryValue(std::string_view name) const {
  const size_t question = target.find('?');
  if (question == std::string::npos) return {};
  std::string_view rest = std::string_view(target).substr(question + 1);
  while (!rest.empty()) {
    const std::string_view pair = rest.substr(0, rest.find('&'));
    rest.remove_prefix(std::min(rest.size(), pair.size() + 1));
    const size_t equals = pair.find('=');
    if (pair.substr(0, equals) == name && equals != std::string_view::npos) {
      return pair.substr(equals + 1);
    }
  }
  return {};
}

std::string_view ReasonPhrase(int status) {
  switch (status) {
    case 200: return "OK";
    case 204: return "No Content";
    case 304: return "Not Modified";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 413: return "Content Too Large";
    case 415: return "Unsupported Media Type";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    case 504: return "Gateway Timeout";
    default: return "Unknown";
  }
}

std::string SerializeResponse(const HttpResponse& response, const WireOptions& wire) {
  // RFC 9110 8.6: no content-length in a 204, and in a 304 only that of the body it stands for.
  const std::string framing =
      response.status == 204 || response.status == 304 ? "" : fmt::format("content-length: {}\r\n", response.body.size());
  std::string out = SerializeHead(response, wire, framing);
  if (!wire.head_only) out += response.body;
  return out;
}

std::string SerializeStreamHead(const HttpResponse& response, const WireOptions& wire, bool chunked) {
  return SerializeHead(response, wire, chunked ? "transfer-encoding: chunked\r\n" : "");
}

std::string FrameChunk(std::string_view data) {
  CHECK(!data.empty(), "an empty chunk ends the body");
  return fmt::format("{:x}\r\n{}\r\n", data.size(), data);
}

std::string PercentDecode(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && HexDigit(text[i + 1]) >= 0 &&
        HexDigit(text[i + 2]) >= 0) {
      out.push_back(static_cast<char>(HexDigit(text[i + 1]) * 16 + HexDigit(text[i + 2])));
      i += 2;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

std::string ToLowerAscii(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return out;
}

std::string_view TrimBlanks(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

}  // namespace moraine
