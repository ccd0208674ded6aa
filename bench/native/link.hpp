// How frames travel between the load generator and a daemon: over a stream, or through the rings of a region.
//
// Both links do the same for a session: a request is written where slot() says and push()ed, flush() lets all of them
// go at once, and receive() hands over what has come since the last time, all of it stamped with the one time at which
// it was there. Neither ever blocks.
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include <sys/socket.h>
#include <unistd.h>

#include <sigd/connect.hpp>
#include <sigd/shared_memory.hpp>

#include "platform.hpp"
#include "violation.hpp"

namespace sigd::bench {

// Which frames may come on a way.
enum class Carries { everything, answers, controls };

// What receive() met. `broken` is noted already, `closed` leaves its reason in errno, 0 for the end of the stream.
enum class Met { nothing, frames, closed, broken };

class StreamLink {
public:
    explicit StreamLink(Violation&) {}

    StreamBuffers& buffers() { return buffers_; }

    // Connects, says Hello and waits for the Welcome.
    Errc open(const Spec& spec, std::uint64_t in_flight, wire::Welcome& welcome, Error& error) {
        sigd::Session session;
        if (Errc code = open_session(spec, buffers_, session, error); code != Errc::none) return code;
        welcome = session.welcome;
        return adopt(session, in_flight, error);
    }

    // Takes over an opened session; what came behind the Welcome is in the buffers already.
    Errc adopt(sigd::Session& session, std::uint64_t in_flight, Error& error) {
        socket_ = std::move(session.socket);
        const Errc code = buffers_.reserve(wire::request_frame_bytes(session.welcome.features), in_flight);
        return code == Errc::none ? code : error.set(code, "no memory for %llu requests",
                                                     static_cast<unsigned long long>(in_flight));
    }

    std::byte* slot() { return buffers_.room(); }
    void push() { buffers_.push(); }
    bool pending() const { return !buffers_.pending().empty(); }

    // False with errno where the daemon takes no more.
    bool flush() {
        while (pending()) {
            const auto bytes = buffers_.pending();
            const ssize_t put = send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
            if (put < 0) return would_block();
            buffers_.sent(static_cast<std::size_t>(put));
        }
        return true;
    }

    // Calls take(frame, carries, now_ns) for each whole frame that one read brought, until it returns false.
    template <class Take>
    Met receive(Take&& take) {
        const auto space = buffers_.writable();
        const ssize_t got = recv(socket_.get(), space.data(), space.size(), MSG_DONTWAIT);
        if (got < 0) return would_block() ? Met::nothing : Met::closed;
        errno = 0;
        if (got == 0) return Met::closed;
        const std::int64_t now_ns = clock_ns();
        buffers_.arrived(static_cast<std::size_t>(got));
        while (const std::byte* frame = buffers_.next())
            if (!take(frame, Carries::everything, now_ns)) return Met::broken;
        return Met::frames;
    }

private:
    Descriptor socket_;
    StreamBuffers buffers_;
};

class RingLink {
public:
    explicit RingLink(Violation& violation) : violation_(violation) {}

    // Connects, and maps the region. The socket stays open, for control messages and as sign of life.
    Errc open(const Spec& spec, std::uint64_t in_flight, wire::Welcome& welcome, Error& error) {
        sigd::Session session;
        if (Errc code = open_session(spec, control_.buffers(), session, error); code != Errc::none) return code;
        welcome = session.welcome;
        if (Errc code = open_region(session.region, welcome, mapping_, region_, error); code != Errc::none) return code;
        if (in_flight > welcome.ring_slots)
            return error.set(Errc::invalid_argument, "%llu in flight, the ring was granted %u slots",
                             static_cast<unsigned long long>(in_flight), welcome.ring_slots);
        stride_ = welcome.response_stride;
        if (!answers_.reserve(welcome.ring_slots * stride_)) return error.set(Errc::out_of_memory, "no memory");
        request_bell_ = std::move(session.request_bell);
        requests_ = region_.requests_out();
        responses_ = region_.responses_in();
        return control_.adopt(session, 0, error);
    }

    std::byte* slot() { return requests_.slot(); }
    void push() { requests_.push(); }
    bool pending() const { return false; }

    bool flush() {
        if (requests_.publish()) {
            const std::uint64_t once = 1;
            // It can only fail where it has been rung 2^64 times, and then the daemon will wake.
            (void)!write(request_bell_.get(), &once, sizeof once);
        }
        return true;
    }

    template <class Take>
    Met receive(Take&& take) {
        const Met met = receive_answers(take);
        if (met != Met::nothing || --looks_left_ != 0) return met;
        looks_left_ = looks_per_control_look;
        // What the socket says comes after the answers that were published before it was said, so these are taken
        // first, and what it says is acted on only where they are good.
        bool good = true;
        const Met said = control_.receive([&](const std::byte* frame, Carries, std::int64_t now_ns) {
            good = good && receive_answers(take) != Met::broken && take(frame, Carries::controls, now_ns);
            return good;
        });
        if (said != Met::closed) return said;
        const int why = errno;
        const Met left = receive_answers(take);
        errno = why;
        return left == Met::broken ? Met::broken : Met::closed;
    }

private:
    // The socket has something to say once in a blue moon, and a look at it costs a system call, in which an answer may
    // come. So there is one in some milliseconds; one in a thousand looks would be one in every tenth request's time.
    static constexpr std::uint32_t looks_per_control_look = 1 << 16;

    // Copies what is in the ring out of it, then has it looked at.
    template <class Take>
    Met receive_answers(Take&& take) {
        const auto waiting = responses_.waiting();
        if (!waiting) {
            violation_.note(ViolationKind::counter, responses_.taken(), region_.header().response_head,
                            "response_head ran backwards, or is further ahead than the ring is long");
            return Met::broken;
        }
        const std::uint64_t count = *waiting;
        if (count == 0) return Met::nothing;
        for (std::uint64_t i = 0; i < count; ++i) {
            std::memcpy(answers_.data() + i * stride_, responses_.slot(), stride_);
            responses_.pop();
        }
        const std::int64_t now_ns = clock_ns();
        for (std::uint64_t i = 0; i < count; ++i)
            if (!fits(answers_.data() + i * stride_) ||
                !take(answers_.data() + i * stride_, Carries::answers, now_ns))
                return Met::broken;
        return Met::frames;
    }

    bool fits(const std::byte* frame) {
        const std::size_t length = wire::header_bytes + load<wire::Header>(frame).block_length;
        return length <= stride_ ||
               violation_.note(ViolationKind::header, stride_, length, "a frame is longer than its slot");
    }

    Violation& violation_;
    StreamLink control_{violation_};
    Mapping mapping_;
    Region region_;
    Descriptor request_bell_;
    RingProducer requests_;
    RingConsumer responses_;
    Memory answers_;
    std::size_t stride_ = 0;
    std::uint32_t looks_left_ = looks_per_control_look;
};

}  // namespace sigd::bench
