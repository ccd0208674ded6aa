// What the client asks of Linux and the processor: a clock, descriptors that close themselves, memory that is asked
// for once.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <utility>

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#if !defined(__linux__)
#error "sigd is for Linux"
#endif

namespace sigd::inline v0_1 {

// CLOCK_MONOTONIC, the clock of every time on the wire; the daemon of the same machine has the same.
inline std::uint64_t clock_ns() noexcept {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return std::uint64_t{1'000'000'000} * static_cast<std::uint64_t>(now.tv_sec) +
           static_cast<std::uint64_t>(now.tv_nsec);
}

// The same clock as it was at the kernel's last tick, up to 10 ms ago: an eighth of the price.
inline std::uint64_t tick_ns() noexcept {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return std::uint64_t{1'000'000'000} * static_cast<std::uint64_t>(now.tv_sec) +
           static_cast<std::uint64_t>(now.tv_nsec);
}

// Reads a value out of raw bytes, whatever lies there.
template <class T>
T load(const std::byte* bytes) noexcept {
    T value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
}

// Says to the processor that this thread waits for another one's store: a sibling on the same core runs faster
// meanwhile.
inline void relax() noexcept {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A length of time that is no less than nothing.
inline std::uint64_t to_ns(std::chrono::nanoseconds time) noexcept {
    return time.count() > 0 ? static_cast<std::uint64_t>(time.count()) : 0;
}

class Descriptor {
public:
    Descriptor() noexcept = default;
    explicit Descriptor(int number) noexcept : number_(number) {}
    Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
    Descriptor& operator=(Descriptor&& other) noexcept {
        if (this != &other) reset(std::exchange(other.number_, -1));
        return *this;
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor() { reset(); }

    [[nodiscard]] int get() const noexcept { return number_; }
    [[nodiscard]] bool valid() const noexcept { return number_ >= 0; }
    void reset(int number = -1) noexcept {
        if (number_ >= 0) ::close(number_);
        number_ = number;
    }

private:
    int number_ = -1;
};

// Zeroed bytes that begin on a cache line. Asking again for no more than there is costs nothing. Not to be moved, and
// so neither is what has one: pointers into it are about.
class Memory {
public:
    Memory() noexcept = default;
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    // False where there is no memory.
    [[nodiscard]] bool reserve(std::size_t bytes) noexcept {
        if (bytes <= bytes_) return true;
        memory_.reset(static_cast<std::byte*>(::operator new(bytes, line, std::nothrow)));
        bytes_ = memory_ ? bytes : 0;
        // Written now, so that no page is touched for the first time on the hot path.
        if (memory_) std::memset(memory_.get(), 0, bytes);
        return memory_ != nullptr;
    }
    [[nodiscard]] std::byte* data() const noexcept { return memory_.get(); }
    [[nodiscard]] std::size_t size() const noexcept { return bytes_; }

private:
    static constexpr std::align_val_t line{64};
    struct Free {
        void operator()(std::byte* memory) const noexcept { ::operator delete(memory, line); }
    };
    std::unique_ptr<std::byte, Free> memory_;
    std::size_t bytes_ = 0;
};

}  // namespace sigd::inline v0_1
