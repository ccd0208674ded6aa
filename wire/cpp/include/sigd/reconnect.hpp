// Coming back after a session has ended: when to try again, and when trying is no use.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <utility>

#include <time.h>

#include "client.hpp"
#include "connect.hpp"
#include "platform.hpp"
#include "result.hpp"

namespace sigd::inline v0_1 {

// Pauses that double from `first` to `longest`, each drawn from its upper half, so that many clients of a daemon that
// went away do not all come back at once. `first` is at least 100 us, whatever is asked for: attempts without a pause
// are a load on a daemon that may be in trouble already.
class Backoff {
public:
    explicit Backoff(std::chrono::nanoseconds first = std::chrono::milliseconds(1),
                     std::chrono::nanoseconds longest = std::chrono::seconds(1),
                     std::uint64_t seed = clock_ns()) noexcept
        : first_ns_(std::max<std::uint64_t>(to_ns(first), 100'000)), longest_ns_(std::max(to_ns(longest), first_ns_)),
          next_ns_(first_ns_), random_(seed | 1) {}

    [[nodiscard]] std::chrono::nanoseconds next() noexcept {
        // xorshift64
        random_ ^= random_ << 13;
        random_ ^= random_ >> 7;
        random_ ^= random_ << 17;
        const std::uint64_t pause = next_ns_ / 2 + random_ % (next_ns_ - next_ns_ / 2 + 1);
        next_ns_ = std::min(2 * next_ns_, longest_ns_);
        return std::chrono::nanoseconds(pause);
    }
    void reset() noexcept { next_ns_ = first_ns_; }
    [[nodiscard]] std::chrono::nanoseconds longest() const noexcept { return std::chrono::nanoseconds(longest_ns_); }

private:
    std::uint64_t first_ns_;
    std::uint64_t longest_ns_;
    std::uint64_t next_ns_;
    std::uint64_t random_;
};

// True where the next attempt to connect would end like this one: what was asked for is wrong, or not to be had.
inline bool is_permanent(const Error& error) noexcept {
    if (error.code != Errc::rejected)
        return error.code == Errc::invalid_argument || error.code == Errc::protocol_broken ||
               error.code == Errc::no_shared_memory;
    switch (error.reject) {
        case wire::RejectCode::malformed_frame:
        case wire::RejectCode::unsupported_version:
        case wire::RejectCode::unexpected_template:
        case wire::RejectCode::shape_mismatch:
        case wire::RejectCode::unknown_model:
        case wire::RejectCode::not_authorised: return true;
        // A daemon may be short of places, of memory or descriptors for rings, or of time for a Hello; and what a newer
        // one may say is not known here.
        default: return false;
    }
}

// A client that comes back. An engine that keeps account reads the client's unanswered requests when a session has ended, and
// only then asks for the next one.
class Reconnector {
public:
    explicit Reconnector(Spec spec, Backoff backoff = Backoff()) : spec_(std::move(spec)), backoff_(backoff) {}

    // The client, connected. None, without a code, where an attempt is on its way, where it is not time for the next one
    // or where the last one failed: ask again at next_attempt_ns(), see error(). A code where no attempt will do better
    // until reset(). Never waits. After this side's Goodbye the next attempt is made at once, after any other end of a
    // session with a pause: a daemon may take sessions on only to end them.
    Result<Client*> get() noexcept {
        if (client_.connected()) return &client_;
        if (given_up_ != Errc::none) return given_up_;
        if (opened_ns_ != 0) ended();
        if (!client_.connecting()) {
            if (clock_ns() < not_before_ns_) return nullptr;
            if (client_.begin_connect(spec_) != Errc::none) return failed();
        }
        const auto open = client_.poll_connect();
        if (!open && open.code() != Errc::none) return failed();
        if (!*open) return nullptr;
        ++sessions_;
        opened_ns_ = clock_ns();
        return &client_;
    }

    // On clock_ns(): before it get() does nothing. An attempt that is on its way goes on when client().descriptor() is
    // readable, or a millisecond from now. The largest number where no attempt will be made.
    [[nodiscard]] std::uint64_t next_attempt_ns() const noexcept {
        if (given_up_ != Errc::none) return ~std::uint64_t{0};
        return client_.connecting() ? clock_ns() + connecting_look_ns : not_before_ns_;
    }

    // Tries again, at once, whatever the pause was: the caller knows that something changed.
    void reset() noexcept {
        given_up_ = Errc::none;
        opened_ns_ = not_before_ns_ = 0;
        if (client_.connecting()) client_.close();
        backoff_.reset();
    }

    // As get(), but sleeps from one attempt to the next. None, without a code, where none succeeded in time.
    Result<Client*> wait(std::chrono::nanoseconds timeout) noexcept {
        const std::uint64_t begin_ns = clock_ns();
        const std::uint64_t end_ns = begin_ns + std::min(to_ns(timeout), ~begin_ns);
        for (;;) {
            const auto client = get();
            if (client || client.code() != Errc::none) return client;
            const std::uint64_t now_ns = clock_ns();
            if (now_ns >= end_ns) return nullptr;
            const std::uint64_t until_ns = std::min(end_ns, std::max(next_attempt_ns(), now_ns));
            if (client_.connecting()) {
                pollfd watched{client_.descriptor(), POLLIN, 0};
                StreamTransport::sleep_on({&watched, 1}, until_ns - now_ns);
                continue;
            }
            const timespec until{static_cast<time_t>(until_ns / 1'000'000'000),
                                 static_cast<long>(until_ns % 1'000'000'000)};
            (void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr);
        }
    }

    [[nodiscard]] const Error& error() const noexcept { return client_.error(); }
    // Whatever its state; get() has it connected.
    [[nodiscard]] Client& client() noexcept { return client_; }
    // Sessions opened so far.
    [[nodiscard]] std::uint64_t sessions() const noexcept { return sessions_; }

private:
    static constexpr std::uint64_t connecting_look_ns = 1'000'000;

    Result<Client*> failed() noexcept {
        if (is_permanent(client_.error())) return given_up_ = client_.error().code;
        pause();
        return nullptr;
    }

    // A session is over. One that lasted as long as the longest pause shows that all is well again.
    void ended() noexcept {
        const std::uint64_t lasted_ns = clock_ns() - std::exchange(opened_ns_, 0);
        if (lasted_ns >= to_ns(backoff_.longest())) backoff_.reset();
        if (client_.error().code == Errc::finished && client_.goodbye_said()) return;
        pause();
    }

    void pause() noexcept { not_before_ns_ = clock_ns() + to_ns(backoff_.next()); }

    Spec spec_;
    Backoff backoff_;
    Client client_;
    Errc given_up_ = Errc::none;
    std::uint64_t not_before_ns_ = 0;
    std::uint64_t opened_ns_ = 0;  // 0 where no session has been opened since the last one was seen to be over
    std::uint64_t sessions_ = 0;
};

}  // namespace sigd::inline v0_1
