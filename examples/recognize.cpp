// Asks `pairvpr serve` where a picture was taken. C++17 and POSIX sockets, nothing else:
//
//   c++ -std=c++17 -o recognize recognize.cpp
//   ./recognize /run/places.sock photo.jpg          or: ./recognize 127.0.0.1:7411 photo.jpg
//
// Prints the answer, a line of JSON. Exit code 0: answered; 2: not, with the reason on stderr.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cctype>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

namespace {

constexpr int kTimeoutSeconds = 60;

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

// A connected socket that closes itself.
class Socket {
 public:
  explicit Socket(const std::string& address) {
    const auto colon = address.rfind(':');
    if (colon == std::string::npos) {
      connect_to_file(address);
    } else {
      connect_to_port(address.substr(0, colon), address.substr(colon + 1));
    }
    const timeval timeout{kTimeoutSeconds, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
  }
  ~Socket() { close(fd_); }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  // False where the service has closed its side: it refuses, and its answer says why.
  bool send_all(const std::string& data) {
    for (size_t sent = 0; sent < data.size();) {
      const ssize_t count = send(fd_, data.data() + sent, data.size() - sent, MSG_NOSIGNAL);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0 && (errno == EPIPE || errno == ECONNRESET)) return false;
      if (count < 0) fail("send");
      sent += static_cast<size_t>(count);
    }
    return true;
  }

  std::string read_to_end() {
    std::string data;
    char chunk[65536];
    while (true) {
      const ssize_t count = recv(fd_, chunk, sizeof chunk, 0);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0 && errno == ECONNRESET && !data.empty()) return data;
      if (count < 0) fail("receive");
      if (count == 0) return data;
      data.append(chunk, static_cast<size_t>(count));
    }
  }

 private:
  void connect_to_file(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) throw std::runtime_error(path + " is too long for a socket");
    std::memcpy(address.sun_path, path.data(), path.size());
    open(AF_UNIX, reinterpret_cast<const sockaddr*>(&address), sizeof address, path);
  }

  void connect_to_port(const std::string& host, const std::string& port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(std::stoi(port)));
    if (inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1) throw std::runtime_error(host + " is no IPv4 address");
    open(AF_INET, reinterpret_cast<const sockaddr*>(&address), sizeof address, host + ":" + port);
  }

  void open(int family, const sockaddr* address, socklen_t size, const std::string& title) {
    fd_ = socket(family, SOCK_STREAM, 0);
    if (fd_ < 0) fail("socket");
    if (connect(fd_, address, size) != 0) {
      const int reason = errno;
      close(fd_);
      errno = reason;
      fail(title);
    }
  }

  int fd_ = -1;
};

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// What may stand in a parameter as it is, and the rest as %XX.
std::string quoted(const std::string& text) {
  const char* digits = "0123456789ABCDEF";
  std::string out;
  for (const unsigned char c : text) {
    if (std::isalnum(c) || std::strchr("-._~", c)) {
      out += static_cast<char>(c);
    } else {
      out += {'%', digits[c >> 4], digits[c & 15]};
    }
  }
  return out;
}

// Status and body of the one answer on a connection that ends with it.
std::pair<int, std::string> parse(const std::string& answer) {
  const auto end = answer.find("\r\n\r\n");
  if (answer.compare(0, 9, "HTTP/1.1 ") != 0 || end == std::string::npos) {
    throw std::runtime_error("the service closed the connection without an answer");
  }
  return {std::stoi(answer.substr(9, 3)), answer.substr(end + 4)};
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::cerr << "usage: recognize SOCKET|HOST:PORT PICTURE\n";
    return 2;
  }
  try {
    const std::string path = arguments[2], picture = read_file(path);
    const std::string name = path.substr(path.rfind('/') + 1);
    Socket service(arguments[1]);
    const std::string head = "POST /v1/recognize?name=" + quoted(name) +
                             " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: " +
                             std::to_string(picture.size()) + "\r\n\r\n";
    if (service.send_all(head)) service.send_all(picture);
    const auto [status, body] = parse(service.read_to_end());
    (status == 200 ? std::cout : std::cerr) << body;
    return status == 200 ? 0 : 2;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 2;
  }
}
