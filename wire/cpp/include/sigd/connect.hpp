// From a path to an open session: connect, Hello, Welcome, and with shared memory the descriptors that come with it.
#pragma once

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include "conversation.hpp"
#include "platform.hpp"
#include "result.hpp"
#include "sigd_wire.hpp"
#include "stream.hpp"

namespace sigd::inline v0_1 {

// What wait() does with nothing to do, named as the daemon names it.
enum class Idle : std::uint8_t {
    spin,     // never sleeps: lowest latency, one core busy
    backoff,  // spins for Spec::spin_for, then sleeps
    block,    // sleeps at once
};

// What to connect to, and what to ask for.
struct Spec {
    std::string path{};          // the daemon's Unix socket
    std::uint32_t features = 0;  // per request; 0 takes the model's
    std::uint32_t outputs = 0;   // per answer; 0 takes the model's
    std::string model_name{};    // at most 32 bytes; empty is the daemon's default
    std::string client_name{};   // for the daemon's logs and metrics, cut after 24 bytes
    wire::Transport transport = wire::Transport::stream;
    std::uint32_t ring_slots = 0;      // shared memory: a power of two; 0 is the daemon's default
    bool history = false;              // the daemon keeps what came before: a request carries one step
    bool conflate = false;             // a request is answered CONFLATED once a newer one of its instrument waits
    std::uint32_t unanswered_max = 0;  // bound of this side; 0 is the daemon's in_flight_max
    std::chrono::nanoseconds connect_timeout = std::chrono::seconds(5);
    Idle idle = Idle::spin;
    std::chrono::nanoseconds spin_for = std::chrono::microseconds(50);  // with Idle::backoff
    // SHA-256 of the model file that must be served; another one is refused with wrong_model. None takes any.
    std::optional<std::array<std::uint8_t, 32>> model_sha256{};
    // Shared memory: how often poll() looks at the control socket, a system call each; 0 is once a tick of the kernel
    // (every 1 to 10 ms). The end of a session is seen that much later.
    std::chrono::nanoseconds control_look_every{0};
};

// What an open session begins with. Descriptors of shared memory are valid where it was granted.
struct Session {
    Descriptor socket;
    wire::Welcome welcome{};
    Descriptor region;
    Descriptor request_bell;
    Descriptor response_bell;
};

namespace detail {

class Handshake {
public:
    Handshake(const Spec& spec, StreamBuffers& buffers, Session& session, Error& error) noexcept
        : spec_(spec), buffers_(buffers), session_(session), error_(error) {}

    // The whole handshake; waits for it.
    Errc run() noexcept {
        if (Errc code = begin(true); code != Errc::none) return code;
        for (;;) {
            const auto done = step();
            if (done.code() != Errc::none) return done.code();
            if (*done) return Errc::none;
            pollfd watched{session_.socket.get(), POLLIN, 0};
            StreamTransport::sleep_on({&watched, 1}, left_ns());
        }
    }

    // Opens the socket; step() does the rest. With `waits` it waits for room in the listener's backlog.
    Errc begin(bool waits) noexcept {
        session_ = Session{};  // descriptors of an earlier one would pass for those that come
        const auto patience = std::max<std::chrono::nanoseconds::rep>(spec_.connect_timeout.count(), 1'000);
        deadline_ns_ = clock_ns() + static_cast<std::uint64_t>(patience);
        if (Errc code = check(); code != Errc::none) return code;
        if (buffers_.reserve_in() != Errc::none) return error_.set(Errc::out_of_memory, "no memory for answers");
        return open(waits);
    }

    // True once the session is open, false while it is on its way. Never waits.
    Result<bool> step() noexcept {
        if (!greeting_sent_) {
            const Errc code = join();
            if (code != Errc::none) return code;
            if (!greeting_sent_) return false;
        }
        const std::byte* frame = nullptr;
        while ((frame = buffers_.next()) == nullptr) {
            const auto got = receive();
            if (got.code() != Errc::none) return got.code();
            if (!*got) return false;
        }
        if (Errc code = greeted(frame); code != Errc::none) return code;
        return true;
    }

private:
    Errc check() noexcept {
        if (spec_.path.size() >= sizeof(sockaddr_un::sun_path))
            return error_.set(Errc::invalid_argument, "the path has %zu bytes, a Unix socket's address holds %zu",
                              spec_.path.size(), sizeof(sockaddr_un::sun_path) - 1);
        // A name that is cut would be another model's.
        if (spec_.model_name.size() > sizeof(wire::Hello::model_name))
            return error_.set(Errc::invalid_argument, "model_name has %zu bytes, expected at most %zu",
                              spec_.model_name.size(), sizeof(wire::Hello::model_name));
        // The daemon's code for this is one that may also pass.
        if ((spec_.ring_slots & (spec_.ring_slots - 1)) != 0)
            return error_.set(Errc::invalid_argument, "ring_slots is %u, expected a power of two", spec_.ring_slots);
        return Errc::none;
    }

    Errc open(bool waits) noexcept {
        session_.socket.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | (waits ? 0 : SOCK_NONBLOCK), 0));
        if (!session_.socket.valid()) return refused(Errc::system, "no socket");
        waits_ = waits;
        if (!waits) return Errc::none;
        // A blocking connect waits for room in the listener's backlog, for this long; a non-blocking one fails.
        const std::uint64_t left_us = left_ns() / 1'000 + 1;
        const timeval patience{static_cast<time_t>(left_us / 1'000'000),
                               static_cast<suseconds_t>(left_us % 1'000'000)};
        if (::setsockopt(session_.socket.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) != 0)
            return refused(Errc::system, "SO_SNDTIMEO");
        return join();
    }

    // Connects and says Hello. On a non-blocking socket a full backlog is tried again with the next step().
    Errc join() noexcept {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::memcpy(address.sun_path, spec_.path.data(), spec_.path.size());
        while (::connect(session_.socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
            if (errno == EINTR) continue;
            if (errno == EAGAIN && left_ns() != 0 && !waits_) return Errc::none;
            if (errno == EAGAIN) return error_.set(Errc::timed_out, "%s: the daemon did not accept in time", path());
            return refused(Errc::connect_failed, hint(errno));
        }
        send_hello();
        greeting_sent_ = true;
        return Errc::none;
    }

    static const char* hint(int system) noexcept {
        switch (system) {
            case ENOENT: return "there is no such socket; start the daemon (sigd serve) or check the path";
            case ECONNREFUSED: return "no daemon listens on it; start the daemon (sigd serve)";
            case EACCES: return "permission denied; join the group that owns the socket";
            default: return std::strerror(system);
        }
    }

    void send_hello() noexcept {
        wire::Hello hello{};
        hello.header = wire::make_header(wire::TemplateId::hello, sizeof hello);
        hello.features = spec_.features;
        hello.outputs = spec_.outputs;
        hello.transport = spec_.transport;
        if (spec_.conflate) hello.flags |= static_cast<std::uint16_t>(wire::HelloFlag::conflate);
        if (spec_.history) hello.flags |= static_cast<std::uint16_t>(wire::HelloFlag::history);
        hello.ring_slots = spec_.ring_slots;
        copy_utf8(hello.client_name, sizeof hello.client_name, spec_.client_name);
        copy_utf8(hello.model_name, sizeof hello.model_name, spec_.model_name);
        // Fresh sockets take 80 bytes at once. A daemon that is full closes without reading them, and says why.
        (void)!::send(session_.socket.get(), &hello, sizeof hello, MSG_NOSIGNAL);
    }

    // Cut at a character's boundary.
    static void copy_utf8(char* field, std::size_t size, std::string_view text) noexcept {
        std::size_t length = std::min(size, text.size());
        if (length < text.size())
            while (length > 0 && (static_cast<unsigned char>(text[length]) & 0xC0) == 0x80) --length;
        std::memcpy(field, text.data(), length);
    }

    // Takes bytes that are there, and the descriptors that may come with them; false where there are none.
    Result<bool> receive() noexcept {
        const auto space = buffers_.writable();
        iovec part{space.data(), space.size()};
        alignas(cmsghdr) std::byte control[CMSG_SPACE(sizeof(int) * 3)];
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        const ssize_t got = ::recvmsg(session_.socket.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
            if (left_ns() != 0) return false;
            return error_.set(Errc::timed_out, "%s: the daemon did not answer Hello in time", path());
        }
        if (got < 0) return refused(Errc::closed, std::strerror(errno));
        truncated_ |= (message.msg_flags & MSG_CTRUNC) != 0;
        keep_descriptors(message);
        if (got == 0) return error_.set(Errc::closed, "the daemon closed the connection before its Welcome");
        buffers_.arrived(static_cast<std::size_t>(got));
        return true;
    }

    void keep_descriptors(msghdr& message) noexcept {
        for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
            if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
            const std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            Descriptor* const places[] = {&session_.region, &session_.request_bell, &session_.response_bell};
            for (std::size_t i = 0; i < count; ++i) {
                int number = -1;
                std::memcpy(&number, CMSG_DATA(part) + i * sizeof(int), sizeof number);
                if (i < std::size(places) && !places[i]->valid())
                    places[i]->reset(number);
                else
                    ::close(number);
            }
        }
    }

    Errc greeted(const std::byte* frame) noexcept {
        const auto header = load<wire::Header>(frame);
        if (const char* wrong = Conversation::wrong_header(header))
            return error_.set(Errc::protocol_broken, "%s", wrong);
        if (header.template_id == wire::TemplateId::reject && Conversation::fits(header, sizeof(wire::Reject)))
            return error_.set(load<wire::Reject>(frame));
        if (header.template_id != wire::TemplateId::welcome || !Conversation::fits(header, sizeof(wire::Welcome)))
            return error_.set(Errc::protocol_broken, "the daemon answered Hello with template %u of %zu bytes",
                              static_cast<unsigned>(header.template_id), wire::header_bytes + header.block_length);
        const auto welcome = load<wire::Welcome>(frame);
        if (Errc code = granted("features", spec_.features, welcome.features, wire::features_max); code != Errc::none)
            return code;
        if (Errc code = granted("outputs", spec_.outputs, welcome.outputs, wire::outputs_max); code != Errc::none)
            return code;
        if (welcome.transport != spec_.transport)
            return error_.set(Errc::protocol_broken, "asked for transport %u, the daemon granted %u",
                              static_cast<unsigned>(spec_.transport), static_cast<unsigned>(welcome.transport));
        if (spec_.model_sha256 && std::memcmp(spec_.model_sha256->data(), welcome.model_sha256, 32) != 0)
            return error_.set(Errc::wrong_model,
                              "generation %u of model %.32s is served, and its SHA-256 is not the one that was asked for",
                              welcome.model_generation, welcome.model_name);
        if (welcome.in_flight_max == 0) return error_.set(Errc::protocol_broken, "the daemon granted no request");
        if (welcome.transport == wire::Transport::shared_memory && !session_.response_bell.valid()) return missing();
        session_.welcome = welcome;
        return Errc::none;
    }

    // Fewer descriptors than three came with the Welcome.
    Errc missing() noexcept {
        if (truncated_) {
            errno = EMFILE;
            return refused(Errc::system, "no descriptors are left for shared memory; raise the limit (ulimit -n)");
        }
        if (!session_.region.valid())
            return error_.set(Errc::no_shared_memory,
                              "no descriptors came with the Welcome: the connection is forwarded (SSH?), and shared "
                              "memory works on the daemon's host only; connect with the stream transport");
        return error_.set(Errc::protocol_broken, "the daemon sent no region and two doorbells with its Welcome");
    }

    Errc granted(const char* what, std::uint32_t asked, std::uint32_t found, std::uint32_t most) noexcept {
        if (found >= 1 && found <= most && (asked == 0 || asked == found)) return Errc::none;
        return error_.set(Errc::protocol_broken, "asked for %u %s (0 is any), the daemon granted %u", asked, what,
                          found);
    }

    Errc refused(Errc code, const char* why) noexcept {
        const int system = errno;
        (void)error_.set(code, "%s: %s", path(), why);
        error_.system = system;
        return code;
    }

    [[nodiscard]] const char* path() const noexcept { return spec_.path.c_str(); }
    [[nodiscard]] std::uint64_t left_ns() const noexcept {
        const std::uint64_t now = clock_ns();
        return now < deadline_ns_ ? deadline_ns_ - now : 0;
    }

    const Spec& spec_;
    StreamBuffers& buffers_;
    Session& session_;
    Error& error_;
    std::uint64_t deadline_ns_ = 0;
    bool waits_ = false;          // in connect(), for room in the listener's backlog
    bool greeting_sent_ = false;  // Hello
    bool truncated_ = false;  // descriptors came for which there was no room
};

}  // namespace detail

// Opens a session. `buffers` holds what came behind the Welcome. `error` says more where the code is not none.
inline Errc open_session(const Spec& spec, StreamBuffers& buffers, Session& session, Error& error) noexcept {
    return detail::Handshake(spec, buffers, session, error).run();
}

}  // namespace sigd::inline v0_1
