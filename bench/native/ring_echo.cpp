// The floor of shared memory: answers every request in the rings of a region, and does nothing else. One thread that
// spins, as the load generator does at the other end. What the contract asks of a daemon is all that it does: it copies
// the request out of its slot (no model runs on features that were not fetched), frees the slot, writes the answer into
// a slot of its own and publishes it.
//
//     ring_echo SOCKET OUTPUTS CPU        serves until its last client has gone

#include <array>
#include <cstring>
#include <memory>
#include <vector>

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <sigd/ring.hpp>
#include <sigd/shared_memory.hpp>
#include <sigd/sigd_wire.hpp>

#include "platform.hpp"

namespace sigd::bench {
namespace {

constexpr std::uint32_t ring_slots_default = 256;
constexpr std::size_t looks_per_socket_look = 1 << 18;

// One client: its region and the daemon's ends of the rings.
class Peer {
public:
    // Takes the Hello, makes a region, and sends it with the Welcome.
    Peer(int connected, std::uint32_t outputs) : socket_(connected) {
        wire::Hello hello{};
        if (recv(connected, &hello, sizeof hello, MSG_WAITALL) != sizeof hello) die("no Hello");
        wire::Welcome welcome{};
        welcome.header = wire::make_header(wire::TemplateId::welcome, sizeof welcome);
        welcome.features = hello.features;
        welcome.outputs = outputs;
        welcome.ring_slots = hello.ring_slots != 0 ? hello.ring_slots : ring_slots_default;
        welcome.in_flight_max = welcome.ring_slots;
        welcome.daemon_pid = static_cast<std::uint64_t>(getpid());
        welcome.clock_ns = sigd::clock_ns();
        welcome.transport = wire::Transport::shared_memory;
        request_bytes_ = wire::request_frame_bytes(hello.features);
        response_bytes_ = wire::response_frame_bytes(outputs);
        welcome.request_stride = static_cast<std::uint32_t>(wire::slot_stride(request_bytes_));
        welcome.response_stride = static_cast<std::uint32_t>(wire::slot_stride(response_bytes_));
        make_region(welcome);
        request_.resize(request_bytes_);
        send_welcome(welcome);
    }

    // Answers what has come; false when the client has gone.
    bool turn(bool look_at_socket) {
        const auto waiting = requests_.waiting();
        if (!waiting) return false;
        for (std::uint64_t left = *waiting; left > 0; --left) {
            std::memcpy(request_.data(), requests_.slot(), request_bytes_);
            requests_.pop();
            answer();
        }
        if (*waiting != 0 && responses_.publish()) {
            const std::uint64_t once = 1;
            (void)!write(response_bell_.get(), &once, sizeof once);
        }
        return !look_at_socket || still_there();
    }

private:
    void make_region(const wire::Welcome& welcome) {
        memory_.reset(memfd_create("sigd-echo", MFD_CLOEXEC | MFD_ALLOW_SEALING));
        const std::size_t bytes =
            wire::region_bytes(welcome.ring_slots, welcome.request_stride, welcome.response_stride);
        if (!memory_.valid() || ftruncate(memory_.get(), static_cast<off_t>(bytes)) != 0) die("memfd");
        if (fcntl(memory_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) die("seals");
        if (!mapping_.map(memory_.get())) die("mmap");
        const Region region =
            Region::create(mapping_.base(), welcome.ring_slots, welcome.features, welcome.outputs);
        requests_ = region.requests_in();
        responses_ = region.responses_out();
        request_bell_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        response_bell_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        if (!request_bell_.valid() || !response_bell_.valid()) die("eventfd");
    }

    void send_welcome(wire::Welcome& welcome) {
        iovec part{&welcome, sizeof welcome};
        const std::array<int, 3> passed{memory_.get(), request_bell_.get(), response_bell_.get()};
        alignas(cmsghdr) std::byte control[CMSG_SPACE(sizeof passed)] = {};
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        cmsghdr* rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof passed);
        std::memcpy(CMSG_DATA(rights), passed.data(), sizeof passed);
        if (sendmsg(socket_.get(), &message, MSG_NOSIGNAL) != sizeof welcome) die("cannot send the Welcome");
    }

    // The slots were made of zeros, and no one writes the outputs: zeros they stay.
    void answer() {
        const auto request = load<wire::SignalRequestHead>(request_.data());
        wire::SignalResponseHead head{};
        head.header = wire::make_header(wire::TemplateId::signal_response, response_bytes_);
        head.sequence = request.sequence;
        head.client_time_ns = request.client_time_ns;
        head.instrument_id = request.instrument_id;
        head.batch_rows = 1;
        std::memcpy(responses_.slot(), &head, sizeof head);
        responses_.push();
    }

    bool still_there() {
        std::array<std::byte, 256> said;
        const ssize_t got = recv(socket_.get(), said.data(), said.size(), MSG_DONTWAIT);
        return got > 0 || (got < 0 && would_block());
    }

    Descriptor socket_;
    Descriptor memory_;
    Descriptor request_bell_;
    Descriptor response_bell_;
    Mapping mapping_;
    RingConsumer requests_;
    RingProducer responses_;
    std::size_t request_bytes_ = 0;
    std::size_t response_bytes_ = 0;
    std::vector<std::byte> request_;
};

}  // namespace
}  // namespace sigd::bench

int main(int argc, char** argv) {
    using namespace sigd::bench;
    if (argc != 4) {
        std::fprintf(stderr, "usage: ring_echo SOCKET OUTPUTS CPU\n");
        return 2;
    }
    pin(std::strtoll(argv[3], nullptr, 10));
    const int listener = listen_on(argv[1]);
    std::puts("ready");
    std::fflush(stdout);

    const auto outputs = static_cast<std::uint32_t>(std::strtoul(argv[2], nullptr, 10));
    std::vector<std::unique_ptr<Peer>> peers;
    bool served = false;
    std::size_t looks = 0;
    while (!served || !peers.empty()) {
        // A look at a socket costs as much as several answers, so there is one in milliseconds, and not in a hundredth
        // of the answers.
        const bool look_at_sockets = looks >= looks_per_socket_look;
        if (peers.empty() || look_at_sockets) {
            looks = 0;
            for (int fd; (fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC)) >= 0;) {
                peers.push_back(std::make_unique<Peer>(fd, outputs));
                served = true;
            }
        }
        looks += peers.size();
        std::erase_if(peers, [&](const auto& peer) { return !peer->turn(look_at_sockets); });
    }
    unlink(argv[1]);
    return 0;
}
