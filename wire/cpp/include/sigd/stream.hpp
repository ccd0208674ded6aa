// The stream transport: frames over a Unix socket. StreamBuffers knows no socket, for those who do their own I/O.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include <poll.h>
#include <sys/socket.h>

#include "platform.hpp"
#include "result.hpp"
#include "sigd_wire.hpp"

namespace sigd::inline v0_1 {

// The bytes of one connection, both ways. In: writable() -> bytes come in -> arrived() -> next(). Out: room() -> a
// request is written -> push() -> pending() -> bytes go out -> sent(). Nothing is allocated after reserve().
class StreamBuffers {
public:
    // Room for that many requests on their way out, and for any frame coming in. Empties the buffers.
    Errc reserve(std::size_t request_bytes, std::size_t requests) noexcept {
        out_begin_ = out_end_ = controls_ = 0;
        writing_ = false;
        request_bytes_ = request_bytes;
        return out_.reserve(request_bytes * requests + control_bytes) ? Errc::none : Errc::out_of_memory;
    }
    Errc reserve_in() noexcept {
        in_begin_ = in_end_ = 0;
        return in_.reserve(4 * wire::frame_bytes_max) ? Errc::none : Errc::out_of_memory;
    }

    // Where the next bytes belong; never empty. Frames that next() gave are gone.
    [[nodiscard]] std::span<std::byte> writable() noexcept {
        if (in_begin_ == in_end_) {
            in_begin_ = in_end_ = 0;
        } else if (in_.size() - in_end_ < wire::frame_bytes_max) {
            std::memmove(in_.data(), in_.data() + in_begin_, in_end_ - in_begin_);
            in_end_ -= in_begin_;
            in_begin_ = 0;
        }
        return {in_.data() + in_end_, in_.size() - in_end_};
    }

    void arrived(std::size_t bytes) noexcept { in_end_ += bytes; }

    // The next whole frame, nullptr where bytes are missing. Its header is not checked yet.
    [[nodiscard]] const std::byte* next() noexcept {
        const std::size_t length = whole();
        if (length == 0) return nullptr;
        const std::byte* frame = in_.data() + in_begin_;
        in_begin_ += length;
        return frame;
    }
    // True where next() has a frame.
    [[nodiscard]] bool ready() const noexcept { return whole() != 0; }

    // Where the next request is to be written; it stays there until push(), whatever is sent meanwhile. There is room
    // while no more requests are unanswered than reserved for.
    [[nodiscard]] std::byte* room() noexcept {
        make_room(request_bytes_);
        writing_ = true;
        return out_.data() + out_end_;
    }
    void push() noexcept {
        out_end_ += request_bytes_;
        writing_ = false;
    }

    // Appends a control message; false where the daemon has left too many of them unread. They never take the room of
    // requests, but the place of one that was being written: it is given up.
    [[nodiscard]] bool push_control(const void* frame, std::size_t bytes) noexcept {
        writing_ = false;
        if (controls_ + bytes > control_bytes) return false;
        controls_ += bytes;
        make_room(bytes);
        std::memcpy(out_.data() + out_end_, frame, bytes);
        out_end_ += bytes;
        return true;
    }

    [[nodiscard]] std::span<const std::byte> pending() const noexcept {
        return {out_.data() + out_begin_, out_end_ - out_begin_};
    }
    void sent(std::size_t bytes) noexcept {
        out_begin_ += bytes;
        if (out_begin_ != out_end_) return;
        controls_ = 0;
        if (!writing_) out_begin_ = out_end_ = 0;
    }

private:
    static constexpr std::size_t control_bytes = 1024;

    // Bytes of the next frame, 0 where it is not whole.
    [[nodiscard]] std::size_t whole() const noexcept {
        const std::size_t have = in_end_ - in_begin_;
        if (have < wire::header_bytes) return 0;
        const std::size_t length = wire::header_bytes + load<wire::Header>(in_.data() + in_begin_).block_length;
        return have < length ? 0 : length;
    }

    void make_room(std::size_t bytes) noexcept {
        if (out_end_ + bytes <= out_.size()) return;
        std::memmove(out_.data(), out_.data() + out_begin_, out_end_ - out_begin_);
        out_end_ -= out_begin_;
        out_begin_ = 0;
    }

    Memory in_;
    std::size_t in_begin_ = 0;
    std::size_t in_end_ = 0;
    Memory out_;
    std::size_t out_begin_ = 0;
    std::size_t out_end_ = 0;
    std::size_t controls_ = 0;  // bytes of control messages since the buffer was last empty
    std::size_t request_bytes_ = 0;
    bool writing_ = false;  // a request at out_end_
};

class StreamTransport {
public:
    // Takes over a connection after its handshake, and what came behind the Welcome.
    Errc open(Descriptor socket, std::size_t request_bytes, std::size_t requests) noexcept {
        socket_ = std::move(socket);
        refused_ = false;
        return buffers_.reserve(request_bytes, requests);
    }
    void close() noexcept { socket_.reset(); }

    [[nodiscard]] StreamBuffers& buffers() noexcept { return buffers_; }
    [[nodiscard]] int descriptor() const noexcept { return socket_.get(); }
    [[nodiscard]] bool unsent() const noexcept { return !buffers_.pending().empty(); }
    // The daemon takes no more bytes; it may still have said something.
    [[nodiscard]] bool refused() const noexcept { return refused_; }

    [[nodiscard]] std::byte* room() noexcept { return buffers_.room(); }
    void push() noexcept { buffers_.push(); }
    [[nodiscard]] bool push_control(const void* frame, std::size_t bytes) noexcept {
        return buffers_.push_control(frame, bytes);
    }

    // Hands over what the socket takes now; the rest waits for the next call. Never blocks.
    Errc flush() noexcept {
        if (refused_) return Errc::closing;
        while (unsent()) {
            const auto bytes = buffers_.pending();
            const ssize_t put = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
            if (put >= 0) {
                buffers_.sent(static_cast<std::size_t>(put));
            } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
                break;
            } else if (errno != EINTR) {
                // The daemon may have said why before it closed: that is still to be read.
                refused_ = true;
                buffers_.sent(bytes.size());
                return Errc::closing;
            }
        }
        return Errc::none;
    }

    // The next frame that has come, none where there is none yet; valid until the next call.
    Result<const std::byte*> next() noexcept {
        if (const std::byte* frame = buffers_.next()) return frame;
        const auto space = buffers_.writable();
        const ssize_t got = ::recv(socket_.get(), space.data(), space.size(), MSG_DONTWAIT);
        if (got > 0) {
            buffers_.arrived(static_cast<std::size_t>(got));
            return buffers_.next();
        }
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return nullptr;
        return Errc::closed;
    }

    // False where next() has something already; whatever else comes makes the socket readable.
    [[nodiscard]] bool may_sleep() const noexcept { return !buffers_.ready(); }
    void awake() noexcept {}

    // Sleeps until something may have come, or can be sent on, or the time is over.
    void sleep(std::uint64_t timeout_ns) noexcept {
        pollfd watched{socket_.get(), static_cast<short>(unsent() ? POLLIN | POLLOUT : POLLIN), 0};
        sleep_on({&watched, 1}, timeout_ns);
    }

    static void sleep_on(std::span<pollfd> watched, std::uint64_t timeout_ns) noexcept {
        constexpr std::uint64_t second = 1'000'000'000;
        const timespec timeout{static_cast<time_t>(timeout_ns / second), static_cast<long>(timeout_ns % second)};
        (void)::ppoll(watched.data(), watched.size(), &timeout, nullptr);
    }

private:
    Descriptor socket_;
    StreamBuffers buffers_;
    bool refused_ = false;
};

}  // namespace sigd::inline v0_1
