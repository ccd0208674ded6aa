// Unary gRPC calls over HTTP/2 (RFC 9113), each a stream of one connection. Headers are sent without compression and
// those that come are not read: a call that failed is known by its having no message.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "peer_link.hpp"

namespace sigd::bench {

class GrpcLink : public SocketLink {
public:
    // The method, "/package.Service/Method", and what comes before the features in each message. The outputs are the
    // last bytes of the answer's message.
    static inline std::string method;
    static inline std::string head;

    using SocketLink::SocketLink;

    Errc open(const Spec& spec, std::uint64_t in_flight, wire::Welcome& welcome, Error& error) {
        prepare(spec, in_flight, welcome);
        calls_.resize(slots());
        headers_ = header_block();
        if (Errc code = connect_to(spec.path, error); code != Errc::none) return code;
        put("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        put_frame(settings, 0, 0, 0);
        // Windows are for large messages: what comes here is a few bytes a call, so the widest is opened at once.
        put_frame(window_update, 0, 0, 4);
        put_number(0x7FFFFFFF - 0xFFFF, 4);
        return flush() ? Errc::none : error.set(Errc::closed, "the connection was closed at once");
    }

    void push() {
        const auto stream = static_cast<std::uint32_t>(2 * asked() + 1);
        calls_[asked() & (calls_.size() - 1)] = {};
        note_asked();
        put_frame(headers, end_headers, stream, headers_.size());
        put(headers_);
        const std::size_t message = head.size() + feature_bytes();
        put_frame(data, end_stream, stream, 5 + message);
        put_number(0, 1);
        put_number(message, 4);
        put(head);
        put(features(), feature_bytes());
    }

    template <class Take>
    Met receive(Take&& take) {
        const Met met = read_once();
        if (met != Met::frames) return met;
        const std::int64_t now_ns = clock_ns();
        std::size_t at = 0;
        while (in_size() - at >= 9) {
            const std::byte* frame = in() + at;
            const std::size_t length = number(frame, 3);
            if (in_size() - at < 9 + length) break;
            if (take_frame(frame, length, now_ns) == Met::broken) return Met::broken;
            at += 9 + length;
        }
        consume(at);
        if (pending() && !flush()) return Met::closed;
        return hand_over(take);
    }

private:
    enum Type : std::uint8_t { data = 0, headers = 1, rst_stream = 3, settings = 4, ping = 6, goaway = 7,
                               window_update = 8 };
    static constexpr std::uint8_t end_stream = 1, ack = 1, end_headers = 4, padded = 8;

    // A call that was made. Calls may end in another order than they were made in: each keeps when it did.
    struct Call {
        std::string message;
        std::int64_t ended_ns = 0;
    };

    Met take_frame(const std::byte* frame, std::size_t length, std::int64_t now_ns) {
        const auto type = static_cast<std::uint8_t>(frame[3]);
        const auto flags = static_cast<std::uint8_t>(frame[4]);
        const std::byte* payload = frame + 9;
        if (type == settings && !(flags & ack)) put_frame(settings, ack, 0, 0);
        if (type == ping && !(flags & ack)) {
            put_frame(ping, ack, 0, length);
            put(payload, length);
        }
        if (type == goaway) return refused("the server said GOAWAY");
        if (type != data && type != headers && type != rst_stream) return Met::nothing;
        const std::uint64_t made = (number(frame + 5, 4) - 1) / 2;
        if (made < answered() || made >= asked()) return refused("a stream that was not opened");
        if (type == rst_stream) return refused("the server reset the call");
        Call& call = calls_[made & (calls_.size() - 1)];
        if (type == data) {
            if (flags & padded) return refused("padded data, which gRPC does not send");
            call.message.append(reinterpret_cast<const char*>(payload), length);
        }
        if (flags & end_stream) call.ended_ns = now_ns;
        return Met::nothing;
    }

    template <class Take>
    Met hand_over(Take&& take) {
        Met met = Met::nothing;
        while (answered() < asked()) {
            const Call& call = calls_[answered() & (calls_.size() - 1)];
            if (call.ended_ns == 0) break;
            if (call.message.size() < 5 + output_bytes()) return refused("the call ended without an answer");
            met = answer(call.message.data() + call.message.size() - output_bytes(), call.ended_ns, 0, take);
            if (met == Met::broken) break;
        }
        return met;
    }

    // The request's headers, literally (RFC 7541): what has a number in the static table is named by it.
    static std::string header_block() {
        std::string block("\x83\x86\x04", 3);  // :method POST, :scheme http, :path ...
        block += text(method);
        block += '\x01';  // :authority ...
        block += text("localhost");
        block += std::string("\x0f\x10", 2);  // content-type ...
        block += text("application/grpc");
        block += std::string(1, '\0') + text("te") + text("trailers");
        return block;
    }
    static std::string text(const std::string& value) { return std::string(1, static_cast<char>(value.size())) + value; }

    void put_frame(Type type, std::uint8_t flags, std::uint32_t stream, std::size_t length) {
        put_number(length, 3);
        put_number(type, 1);
        put_number(flags, 1);
        put_number(stream, 4);
    }
    void put_number(std::uint64_t value, int bytes) {
        for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8) {
            const auto byte = static_cast<std::uint8_t>(value >> shift);
            put(&byte, 1);
        }
    }
    static std::uint64_t number(const std::byte* from, int bytes) {
        std::uint64_t value = 0;
        for (int i = 0; i < bytes; ++i) value = value << 8 | static_cast<std::uint8_t>(from[i]);
        return value;
    }

    std::string headers_;
    std::vector<Call> calls_;
};

}  // namespace sigd::bench
