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

namespace sigd {

// Pauses that double from `first` to `longest`, each drawn from its upper half, so that many clients of a daemon that
// went away do not all come back at once.
class Backoff {
public:
    explicit Backoff(std::chrono::nanoseconds first = std::chrono::milliseconds(1),
                     std::chrono::nanoseconds longest = std::chrono::seconds(1),
                     std::uint64_t seed = clock_ns()) noexcept
        : first_ns_(std::max<std::uint64_t>(static_cast<std::uint64_t>(first.count()), 2)),
          longest_ns_(std::max(static_cast<std::uint64_t>(longest.count()), first_ns_)), next_ns_(first_ns_),
          random_(seed | 1) {}

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

private:
    std::uint64_t first_ns_;
    std::uint64_t longest_ns_;
    std::uint64_t next_ns_;
    std::uint64_t random_;
};

// True where the next attempt would end like this one: what was asked for is wrong, or not to be had.
inline bool is_permanent(const Error& error) noexcept {
    if (error.code == Errc::rejected) return error.reject != wire::RejectCode::too_many_connections;
    return error.code == Errc::invalid_argument || error.code == Errc::protocol_broken ||
           error.code == Errc::no_shared_memory;
}

// A client that comes back.
class Reconnector {
public:
    explicit Reconnector(Spec spec, Backoff backoff = Backoff()) : spec_(std::move(spec)), backoff_(backoff) {}

    // The client, connected. nullptr where it is not time for the next attempt, or that failed: ask again later, see
    // error(). A code where no attempt will do better. An attempt waits for as long as Spec::connect_timeout.
    Result<Client*> get() noexcept {
        if (client_.connected()) return &client_;
        if (given_up_ != Errc::none) return given_up_;
        if (clock_ns() < not_before_ns_) return nullptr;
        if (client_.connect(spec_) == Errc::none) {
            ++sessions_;
            backoff_.reset();
            return &client_;
        }
        if (is_permanent(client_.error())) return given_up_ = client_.error().code;
        not_before_ns_ = clock_ns() + static_cast<std::uint64_t>(backoff_.next().count());
        return nullptr;
    }

    // As get(), but sleeps from one attempt to the next. nullptr where none succeeded in time.
    Result<Client*> wait(std::chrono::nanoseconds timeout) noexcept {
        const std::uint64_t end_ns = clock_ns() + static_cast<std::uint64_t>(timeout.count());
        for (;;) {
            const auto client = get();
            if (!client || *client != nullptr) return client;
            const std::uint64_t now_ns = clock_ns();
            if (now_ns >= end_ns) return nullptr;
            const std::uint64_t until_ns = std::min(end_ns, std::max(not_before_ns_, now_ns));
            const timespec until{static_cast<time_t>(until_ns / 1'000'000'000),
                                 static_cast<long>(until_ns % 1'000'000'000)};
            (void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr);
        }
    }

    [[nodiscard]] const Error& error() const noexcept { return client_.error(); }
    // Sessions opened so far.
    [[nodiscard]] std::uint64_t sessions() const noexcept { return sessions_; }

private:
    Spec spec_;
    Backoff backoff_;
    Client client_;
    Errc given_up_ = Errc::none;
    std::uint64_t not_before_ns_ = 0;
    std::uint64_t sessions_ = 0;
};

}  // namespace sigd
