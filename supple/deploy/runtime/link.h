// UDP packets between runner and robot: little-endian, a 24-byte head, then float32 numbers or text.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace supple {

enum class Kind : std::uint16_t {
  kHello = 1,        // runner: who are you?
  kDescription = 2,  // robot: JSON with its joints and channels, the hello's sequence, at once
  kState = 3,        // robot: one number per channel, as `feed` in manifest.json says
  kCommand = 4,      // runner: one command per joint, in the robot's order
  kDamp = 5,         // runner: brake; one gain per joint, in the robot's order
};

struct Head {
  char magic[4] = {'S', 'U', 'P', 'L'};
  std::uint16_t version = 1;
  std::uint16_t kind = 0;
  std::uint32_t sequence = 0;
  std::uint32_t count = 0;  // numbers, or bytes of text
  double time = 0;          // sender's clock [s]
};
static_assert(sizeof(Head) == 24, "the head has no padding");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "packets are copied as they lie in memory");

struct Packet {
  Head head;
  std::vector<float> numbers;
  std::string text;
};

class Link {
 public:
  Link(const std::string& host, int port) : socket_(::socket(AF_INET, SOCK_DGRAM, 0)) {
    robot_.sin_family = AF_INET;
    robot_.sin_port = htons(static_cast<std::uint16_t>(port));
    if (socket_ < 0 || inet_pton(AF_INET, host.c_str(), &robot_.sin_addr) != 1)
      throw std::runtime_error("cannot open a socket to " + host +
                               ": expected an IPv4 address such as 127.0.0.1");
    // Only what this robot sends is read.
    if (::connect(socket_, reinterpret_cast<const sockaddr*>(&robot_), sizeof robot_) != 0)
      throw std::runtime_error("cannot reach " + host);
    ::fcntl(socket_, F_SETFL, O_NONBLOCK);
  }
  ~Link() { ::close(socket_); }
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  void send(Kind kind, std::uint32_t sequence, double time, const std::vector<float>& numbers) {
    Head head;
    head.kind = static_cast<std::uint16_t>(kind);
    head.sequence = sequence;
    head.count = static_cast<std::uint32_t>(numbers.size());
    head.time = time;
    std::vector<char> bytes(sizeof head + numbers.size() * sizeof(float));
    std::memcpy(bytes.data(), &head, sizeof head);
    if (!numbers.empty())
      std::memcpy(bytes.data() + sizeof head, numbers.data(), numbers.size() * sizeof(float));
    // A packet the kernel refuses is a lost packet; the robot's watchdog knows what to do.
    const ssize_t sent = ::send(socket_, bytes.data(), bytes.size(), 0);
    (void)sent;
  }

  // Until a packet is there, at most so long [s].
  void wait(double seconds) {
    pollfd there{socket_, POLLIN, 0};
    ::poll(&there, 1, 1 + static_cast<int>(1e3 * seconds));
  }

  // The next whole packet; false where none is waiting.
  bool receive(Packet& packet) {
    char bytes[65536];
    for (;;) {
      const ssize_t size = ::recv(socket_, bytes, sizeof bytes, 0);
      if (size < 0) return false;
      if (static_cast<std::size_t>(size) < sizeof(Head)) continue;
      std::memcpy(&packet.head, bytes, sizeof(Head));
      if (std::memcmp(packet.head.magic, "SUPL", 4) != 0 || packet.head.version != 1) continue;
      const std::size_t left = static_cast<std::size_t>(size) - sizeof(Head);
      const bool text = packet.head.kind == static_cast<std::uint16_t>(Kind::kDescription);
      // In 64 bits: a count times 4 wraps in the 32 of a small computer.
      if (left != std::uint64_t{packet.head.count} * (text ? 1 : sizeof(float))) continue;
      packet.text.assign(text ? bytes + sizeof(Head) : "", text ? left : 0);
      packet.numbers.resize(text ? 0 : packet.head.count);
      if (!packet.numbers.empty()) std::memcpy(packet.numbers.data(), bytes + sizeof(Head), left);
      return true;
    }
  }

 private:
  int socket_;
  sockaddr_in robot_{};
};

}  // namespace supple
