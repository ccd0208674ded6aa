// The shared-memory transport: requests and responses travel in the rings of a region, everything else over the Unix
// socket, whose end is the session's end. No system call is made while both sides are awake.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include <sys/mman.h>
#include <sys/stat.h>

#include "platform.hpp"
#include "result.hpp"
#include "ring.hpp"
#include "stream.hpp"

namespace sigd::inline v0_1 {

class Mapping {
public:
    Mapping() noexcept = default;
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    ~Mapping() { reset(); }

    // Maps a whole file, every page of it at once; false with errno.
    [[nodiscard]] bool map(int descriptor) noexcept {
        reset();
        struct stat status{};
        if (::fstat(descriptor, &status) != 0) return false;
        const auto bytes = static_cast<std::size_t>(status.st_size);
        void* base = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, descriptor, 0);
        if (base == MAP_FAILED) return false;
        base_ = static_cast<std::byte*>(base);
        bytes_ = bytes;
        return true;
    }
    void reset() noexcept {
        if (base_ != nullptr) ::munmap(base_, bytes_);
        base_ = nullptr;
        bytes_ = 0;
    }
    [[nodiscard]] std::byte* base() const noexcept { return base_; }
    [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }

private:
    std::byte* base_ = nullptr;
    std::size_t bytes_ = 0;
};

// Maps the region that came with a Welcome, and holds it against what the Welcome says.
inline Errc open_region(const Descriptor& descriptor, const wire::Welcome& welcome, Mapping& mapping, Region& region,
                        Error& error) noexcept {
    // Sealed, the file cannot shrink under the mapping: no access to it can fault.
    const int seals = ::fcntl(descriptor.get(), F_GET_SEALS);
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0)
        return error.set(Errc::protocol_broken, "the region is not sealed against shrinking");
    if (!mapping.map(descriptor.get())) {
        const int system = errno;
        (void)error.set(Errc::system, "cannot map the region: %s", std::strerror(system));
        error.system = system;
        return Errc::system;
    }
    if (const char* wrong = region.attach(mapping.base(), mapping.bytes()))
        return error.set(Errc::protocol_broken, "%s", wrong);
    const wire::RegionHeader& header = region.header();
    if (header.ring_slots != welcome.ring_slots || header.request_stride != welcome.request_stride ||
        header.response_stride != welcome.response_stride || header.features != welcome.features ||
        header.outputs != welcome.outputs)
        return error.set(Errc::protocol_broken, "the region is not the one that the Welcome describes");
    return Errc::none;
}

class SharedMemoryTransport {
public:
    // Takes over what came with a Welcome; the control channel is the stream transport of the same connection.
    Errc open(StreamTransport& control, const wire::Welcome& welcome, const Descriptor& region,
              Descriptor request_bell, Descriptor response_bell, std::uint64_t look_every_ns, Error& error) noexcept {
        look_every_ns_ = look_every_ns;
        control_ = &control;
        if (Errc code = open_region(region, welcome, mapping_, region_, error); code != Errc::none) return code;
        response_stride_ = region_.header().response_stride;
        if (!frame_.reserve(response_stride_)) return error.set(Errc::out_of_memory, "no memory for an answer");
        request_bell_ = std::move(request_bell);
        response_bell_ = std::move(response_bell);
        requests_ = region_.requests_out();
        responses_ = region_.responses_in();
        kept_control_ = nullptr;
        control_closed_ = false;
        control_looked_ns_ = 0;
        asleep_ = false;
        // awake() must not wait for a ring. The flag is the eventfd's own, and so the daemon's: it never waits either.
        (void)::fcntl(response_bell_.get(), F_SETFL, O_NONBLOCK);
        return Errc::none;
    }

    void close() noexcept {
        mapping_.reset();
        request_bell_.reset();
        response_bell_.reset();
    }

    [[nodiscard]] std::byte* room() noexcept { return requests_.slot(); }
    void push() noexcept { requests_.push(); }
    [[nodiscard]] bool push_control(const void* frame, std::size_t bytes) noexcept {
        return control_->push_control(frame, bytes);
    }
    [[nodiscard]] bool unsent() const noexcept { return requests_.unpublished() || control_->unsent(); }

    // Publishes the requests, and wakes the daemon where it sleeps.
    Errc flush() noexcept {
        if (requests_.publish()) {
            const std::uint64_t once = 1;
            // It can only fail where it has been rung 2^64 times, and then the daemon will wake.
            (void)!::write(request_bell_.get(), &once, sizeof once);
        }
        return control_->unsent() ? control_->flush() : Errc::none;
    }

    // The next frame that has come, none where there is none yet; valid until the next call.
    Result<const std::byte*> next() noexcept {
        const auto waiting = responses_.waiting();
        if (!waiting) [[unlikely]] return waiting.code();
        if (*waiting != 0) {
            std::memcpy(frame_.data(), responses_.slot(), response_stride_);
            responses_.pop();
            if (wire::header_bytes + load<wire::Header>(frame_.data()).block_length > response_stride_) [[unlikely]]
                return Errc::protocol_broken;
            return frame_.data();
        }
        // A look at the socket costs a system call, and it has something to say once in a blue moon; but it is also
        // where the end of the session is seen. One a tick tells within milliseconds, however often the ring is looked
        // at.
        const std::uint64_t now_ns = tick_ns();
        if (now_ns == control_looked_ns_ || now_ns - control_looked_ns_ < look_every_ns_) [[likely]] return nullptr;
        control_looked_ns_ = now_ns;
        return next_control();
    }

    // Asks for the doorbell. False where next() has something already: do not sleep.
    [[nodiscard]] bool may_sleep() noexcept {
        if (kept_control_ != nullptr || control_closed_ || !control_->may_sleep()) return false;
        asleep_ = responses_.may_sleep();
        if (!asleep_) responses_.awake();
        return asleep_;
    }
    // Comes after may_sleep(), and costs a system call only where that was true. Then next() looks at the socket too.
    void awake() noexcept {
        if (!std::exchange(asleep_, false)) return;
        responses_.awake();
        std::uint64_t rings = 0;
        (void)!::read(response_bell_.get(), &rings, sizeof rings);
        control_looked_ns_ = 0;
    }
    [[nodiscard]] int doorbell() const noexcept { return response_bell_.get(); }

    // Sleeps until something may have come or the time is over.
    void sleep(std::uint64_t timeout_ns) noexcept {
        if (!may_sleep()) return;
        pollfd watched[2] = {
            {control_->descriptor(), static_cast<short>(control_->unsent() ? POLLIN | POLLOUT : POLLIN), 0},
            {response_bell_.get(), POLLIN, 0},
        };
        StreamTransport::sleep_on(watched, timeout_ns);
        awake();
    }

    [[nodiscard]] std::uint64_t daemon_heartbeat_ns() const noexcept { return region_.daemon_heartbeat_ns(); }

private:
    // What the socket says comes after the answers that were published before it was said.
    Result<const std::byte*> next_control() noexcept {
        if (kept_control_ == nullptr && !control_closed_) {
            const auto found = control_->next();
            if (!found && found.code() == Errc::none) return nullptr;
            if (found)
                kept_control_ = *found;
            else
                control_closed_ = true;
        }
        control_looked_ns_ = 0;  // there is more to hear from it, as soon as the ring is empty
        const auto waiting = responses_.waiting();
        if (!waiting || *waiting != 0) return next();
        if (kept_control_ != nullptr) return std::exchange(kept_control_, nullptr);
        return Errc::closed;
    }

    StreamTransport* control_ = nullptr;
    Mapping mapping_;
    Region region_;
    Descriptor request_bell_;
    Descriptor response_bell_;
    RingProducer requests_;
    RingConsumer responses_;
    Memory frame_;
    std::size_t response_stride_ = 0;
    const std::byte* kept_control_ = nullptr;  // met while answers were still to be taken
    bool control_closed_ = false;
    bool asleep_ = false;                       // the daemon is asked to ring
    std::uint64_t look_every_ns_ = 0;           // at the socket; 0 is each tick
    std::uint64_t control_looked_ns_ = 0;       // the tick of the last look at the socket; 0 asks for one
};

}  // namespace sigd::inline v0_1
