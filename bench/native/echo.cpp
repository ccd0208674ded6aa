// The floor of the Unix socket: answers every request at once with a frame of the response's size, and does
// nothing else. One thread that spins on non-blocking sockets, as the load generator does at the other end.
//
//     echo SOCKET OUTPUTS CPU        serves until its last client has gone

#include <cstring>
#include <vector>

#include <sys/socket.h>
#include <unistd.h>

#include <sigd/sigd_wire.hpp>

#include "platform.hpp"

namespace sigd::bench {
namespace {

constexpr std::size_t read_bytes = 1 << 18;
constexpr std::size_t in_flight_max = 1 << 16;

struct Peer {
    explicit Peer(int connected) : fd(connected) {}

    int fd;
    std::vector<std::byte> in = std::vector<std::byte>(2 * read_bytes);
    std::size_t filled = 0;
    std::vector<std::byte> out;
    std::size_t out_begin = 0;
    std::size_t out_end = 0;
};

class Echo {
public:
    explicit Echo(std::uint32_t outputs) : outputs_(outputs), answer_(wire::response_frame_bytes(outputs)) {}

    // False when the peer has gone.
    bool turn(Peer& peer) {
        if (peer.out_begin < peer.out_end) return flush(peer);
        const ssize_t got = read(peer.fd, peer.in.data() + peer.filled, read_bytes);
        if (got == 0) return false;
        if (got < 0) return would_block();
        peer.filled += static_cast<std::size_t>(got);
        answer_frames(peer);
        return flush(peer);
    }

private:
    void answer_frames(Peer& peer) {
        std::size_t at = 0;
        peer.out_begin = peer.out_end = 0;
        while (peer.filled - at >= wire::header_bytes) {
            const auto header = load<wire::Header>(peer.in.data() + at);
            const std::size_t length = wire::header_bytes + header.block_length;
            if (peer.filled - at < length) break;
            if (header.template_id == wire::TemplateId::hello) welcome(peer, at);
            else answer(peer, at);
            at += length;
        }
        std::memmove(peer.in.data(), peer.in.data() + at, peer.filled - at);
        peer.filled -= at;
    }

    void welcome(Peer& peer, std::size_t at) {
        wire::Welcome welcome{};
        welcome.header = wire::make_header(wire::TemplateId::welcome, sizeof welcome);
        welcome.features = load<wire::Hello>(peer.in.data() + at).features;
        welcome.outputs = outputs_;
        welcome.in_flight_max = in_flight_max;
        welcome.daemon_pid = static_cast<std::uint64_t>(getpid());
        welcome.clock_ns = static_cast<std::uint64_t>(clock_ns());
        std::memcpy(room(peer, sizeof welcome), &welcome, sizeof welcome);
    }

    void answer(Peer& peer, std::size_t at) {
        const auto request = load<wire::SignalRequestHead>(peer.in.data() + at);
        wire::SignalResponseHead head{};
        head.header = wire::make_header(wire::TemplateId::signal_response, answer_);
        head.sequence = request.sequence;
        head.client_time_ns = request.client_time_ns;
        head.instrument_id = request.instrument_id;
        head.batch_rows = 1;
        std::byte* to = room(peer, answer_);
        std::memcpy(to, &head, sizeof head);
        std::memset(to + sizeof head, 0, answer_ - sizeof head);
    }

    std::byte* room(Peer& peer, std::size_t bytes) {
        if (peer.out.size() < peer.out_end + bytes) peer.out.resize(2 * (peer.out_end + bytes));
        std::byte* to = peer.out.data() + peer.out_end;
        peer.out_end += bytes;
        return to;
    }

    bool flush(Peer& peer) {
        while (peer.out_begin < peer.out_end) {
            const ssize_t put =
                send(peer.fd, peer.out.data() + peer.out_begin, peer.out_end - peer.out_begin, MSG_NOSIGNAL);
            if (put < 0) return would_block();
            peer.out_begin += static_cast<std::size_t>(put);
        }
        return true;
    }

    std::uint32_t outputs_;
    std::size_t answer_;
};

}  // namespace
}  // namespace sigd::bench

int main(int argc, char** argv) {
    using namespace sigd::bench;
    if (argc != 4) {
        std::fprintf(stderr, "usage: echo SOCKET OUTPUTS CPU\n");
        return 2;
    }
    pin(std::strtoll(argv[3], nullptr, 10));
    const int listener = listen_on(argv[1]);
    std::puts("ready");
    std::fflush(stdout);

    Echo echo(static_cast<std::uint32_t>(std::strtoul(argv[2], nullptr, 10)));
    std::vector<Peer> peers;
    bool served = false;
    std::uint32_t turns = 0;
    while (!served || !peers.empty()) {
        // Looking for newcomers costs a system call, so it is done rarely once a client is there.
        if (peers.empty() || (++turns & 0x3FF) == 0) {
            const int fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
            if (fd >= 0) {
                peers.emplace_back(fd);
                served = true;
            }
        }
        for (std::size_t i = 0; i < peers.size();) {
            if (echo.turn(peers[i])) {
                ++i;
                continue;
            }
            close(peers[i].fd);
            peers.erase(peers.begin() + static_cast<std::ptrdiff_t>(i));
        }
    }
    unlink(argv[1]);
    return 0;
}
