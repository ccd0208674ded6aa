// Both sides of a region as two threads, asleep and awake in turn: for ThreadSanitizer, which sees what two processes
// hide from it.
//
//     ring_threads REQUESTS SLOTS
#include <cstdio>
#include <cstdlib>
#include <thread>

#include <poll.h>
#include <sys/eventfd.h>

#include <sigd/sigd.hpp>

namespace {

constexpr std::uint32_t features = 3;
constexpr std::uint32_t outputs = 1;

// Waits for a frame: looks a few times, then sleeps on the doorbell.
template <class Consumer>
std::uint64_t wait_for_frames(Consumer& frames, int bell) {
    for (int looks = 0;; ++looks) {
        const auto waiting = frames.waiting();
        if (!waiting) std::abort();
        if (*waiting != 0) return *waiting;
        if (looks % 8 != 7) continue;
        if (frames.may_sleep()) {
            pollfd watched{bell, POLLIN, 0};
            if (poll(&watched, 1, 20'000) == 0) std::abort();  // no doorbell rang
            eventfd_t rings = 0;
            if (eventfd_read(bell, &rings) != 0) std::abort();
        }
        frames.awake();
    }
}

void put(std::byte* slot, std::uint64_t number, std::size_t words) {
    for (std::size_t word = 0; word < words; ++word) {
        const std::uint64_t value = number * 31 + word;
        std::memcpy(slot + 8 * word, &value, sizeof value);
    }
}

void check(const std::byte* slot, std::uint64_t number, std::size_t words) {
    for (std::size_t word = 0; word < words; ++word)
        if (sigd::load<std::uint64_t>(slot + 8 * word) != number * 31 + word) std::abort();
}

void answer(sigd::Region region, std::uint64_t requests, int request_bell, int response_bell) {
    auto in = region.requests_in();
    auto out = region.responses_out();
    for (std::uint64_t number = 0; number < requests;) {
        std::uint64_t waiting = wait_for_frames(in, request_bell);
        for (; waiting > 0; --waiting, ++number) {
            check(in.slot(), number, 7);
            in.pop();
            if (*out.room() == 0) std::abort();
            put(out.slot(), number, 7);
            out.push();
        }
        if (out.publish()) eventfd_write(response_bell, 1);
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    const std::uint64_t requests = std::strtoull(argv[1], nullptr, 10);
    const auto slots = static_cast<std::uint32_t>(std::strtoul(argv[2], nullptr, 10));
    sigd::Memory memory;
    const std::size_t bytes = sigd::wire::region_bytes(slots, 64, 64);
    if (!memory.reserve(bytes)) return 3;
    sigd::Region region = sigd::Region::create(memory.data(), slots, features, outputs);
    sigd::Region same;
    if (same.attach(memory.data(), bytes) != nullptr || same.attach(memory.data(), bytes - 1) == nullptr) return 1;
    const int request_bell = eventfd(0, EFD_NONBLOCK);
    const int response_bell = eventfd(0, EFD_NONBLOCK);
    std::thread daemon(answer, region, requests, request_bell, response_bell);
    auto out = same.requests_out();
    auto in = same.responses_in();
    for (std::uint64_t sent = 0, answered = 0; answered < requests;) {
        while (sent < requests && sent - answered < slots) {
            put(out.slot(), sent++, 7);
            out.push();
        }
        if (out.publish()) eventfd_write(request_bell, 1);
        for (std::uint64_t waiting = wait_for_frames(in, response_bell); waiting > 0; --waiting, ++answered) {
            check(in.slot(), answered, 7);
            in.pop();
        }
    }
    daemon.join();
    std::printf("%llu answers\n", static_cast<unsigned long long>(requests));
}
