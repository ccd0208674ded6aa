// How things are said to have gone: a code from every call, and the whole story in one place of the client's.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <type_traits>

#include "sigd_wire.hpp"

// Two builds of these headers may meet in one process, in plugins for instance: the version in the names keeps them apart.
namespace sigd::inline v0_1 {

// Why a call did not do what it is for. Those marked "over" end the session: every later call gives the same code, and
// Client::error() tells more.
enum class [[nodiscard]] Errc : std::uint8_t {
    none,
    invalid_argument,  // what was asked for cannot be, or nothing was prepared; nothing was sent
    in_flight_full,    // as many requests as may be are unanswered; nothing was sent, take answers first
    not_connected,     // connect() first
    closing,           // nothing more can be sent, after a Goodbye of this side or where the daemon takes no more;
                       // poll() has the answers that are left, then the reason
    connect_failed,    // over: no daemon listens there, or the socket may not be opened
    timed_out,         // over: the daemon did not answer Hello in time
    rejected,          // over: the daemon said why, see Error::reject and Error::text
    finished,          // over: a Goodbye was said, and every request was answered
    closed,            // over: the connection is gone
    protocol_broken,   // over: the daemon's bytes break the contract
    wrong_model,       // over: another file is served than Spec::model_sha256 names
    no_shared_memory,  // over: it was granted and cannot come here, as through an SSH tunnel; ask for the stream
    out_of_memory,     // over
    system,            // over: the kernel refused something, see Error::system
};

constexpr const char* name(Errc code) noexcept {
    switch (code) {
        case Errc::none: return "none";
        case Errc::invalid_argument: return "invalid_argument";
        case Errc::in_flight_full: return "in_flight_full";
        case Errc::not_connected: return "not_connected";
        case Errc::closing: return "closing";
        case Errc::connect_failed: return "connect_failed";
        case Errc::timed_out: return "timed_out";
        case Errc::rejected: return "rejected";
        case Errc::finished: return "finished";
        case Errc::closed: return "closed";
        case Errc::protocol_broken: return "protocol_broken";
        case Errc::wrong_model: return "wrong_model";
        case Errc::no_shared_memory: return "no_shared_memory";
        case Errc::out_of_memory: return "out_of_memory";
        case Errc::system: return "system";
    }
    return "unknown";
}

// How a session ended, or why there is none.
struct Error {
    Errc code = Errc::not_connected;
    wire::RejectCode reject{};     // with Errc::rejected
    int system = 0;                // errno, where the kernel said it
    std::uint64_t unanswered = 0;  // requests that were sent and will have no answer
    char text[192] = "not connected";

    // Fills in code and text, as printf would.
    [[gnu::format(printf, 3, 4)]] Errc set(Errc why, const char* format, ...) noexcept {
        *this = Error{};
        code = why;
        va_list arguments;
        va_start(arguments, format);
        std::vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        return why;
    }

    // The daemon's own words.
    Errc set(const wire::Reject& said) noexcept {
        (void)set(Errc::rejected, "the daemon rejected the session: %.*s (code %u, %s)",
                  static_cast<int>(sizeof said.reason), said.reason, static_cast<unsigned>(said.code),
                  wire::name(said.code));
        reject = said.code;
        return code;
    }
};

// A value or the reason why there is none. A pointer may be missing without a reason, where there is nothing yet: then
// it is false too, and code() is Errc::none. Small enough to come back in registers.
template <class T>
class [[nodiscard]] Result {
public:
    constexpr Result(T value) noexcept : value_(value) {}
    constexpr Result(Errc code) noexcept : code_(code) {}

    // Whether there is a value.
    [[nodiscard]] constexpr explicit operator bool() const noexcept {
        if constexpr (std::is_pointer_v<T>)
            return value_ != nullptr;
        else
            return code_ == Errc::none;
    }
    [[nodiscard]] constexpr T operator*() const noexcept { return value_; }
    [[nodiscard]] constexpr Errc code() const noexcept { return code_; }

private:
    T value_{};
    Errc code_ = Errc::none;
};

}  // namespace sigd::inline v0_1
