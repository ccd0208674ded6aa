// Requests over HTTP/1.1: one unanswered on a connection that stays open, as the pools of HTTP clients do.
#pragma once

#include <algorithm>
#include <cctype>
#include <string>
#include <string_view>

#include "peer_link.hpp"

namespace sigd::bench {

class HttpLink : public SocketLink {
public:
    // What is sent before the features of each request: the request line, the headers, and what else of the body comes
    // first. The outputs are the last bytes of the answer's body.
    static inline std::string head;

    using SocketLink::SocketLink;

    Errc open(const Spec& spec, std::uint64_t in_flight, wire::Welcome& welcome, Error& error) {
        if (in_flight != 1)
            return error.set(Errc::invalid_argument, "%llu in flight, and HTTP/1.1 has one on a connection",
                             static_cast<unsigned long long>(in_flight));
        prepare(spec, in_flight, welcome);
        return connect_to(spec.path, error);
    }

    void push() {
        note_asked();
        put(head);
        put(features(), feature_bytes());
    }

    template <class Take>
    Met receive(Take&& take) {
        const Met met = read_once();
        if (met != Met::frames) return met;
        const std::int64_t now_ns = clock_ns();
        const std::string_view got(reinterpret_cast<const char*>(in()), in_size());
        const std::size_t end = got.find("\r\n\r\n");
        if (end == std::string_view::npos) return Met::nothing;
        const std::string_view headers = got.substr(0, end);
        const std::size_t length = content_length(headers);
        if (length == std::string_view::npos) return refused("an answer without a Content-Length");
        if (got.size() < end + 4 + length) return Met::nothing;
        const std::string_view body = got.substr(end + 4, length);
        if (headers.substr(0, 12) != "HTTP/1.1 200" || body.size() < output_bytes())
            return refused(std::string(headers.substr(0, headers.find('\r'))) + ": " + std::string(body.substr(0, 120)));
        const Met answered_it = answer(body.data() + body.size() - output_bytes(), now_ns, 0, take);
        consume(end + 4 + length);
        return answered_it;
    }

private:
    static std::size_t content_length(std::string_view headers) {
        constexpr std::string_view name = "\r\ncontent-length:";
        const auto same = [](char a, char b) { return std::tolower(static_cast<unsigned char>(a)) == b; };
        const auto at = std::search(headers.begin(), headers.end(), name.begin(), name.end(), same);
        if (at == headers.end()) return std::string_view::npos;
        std::size_t length = 0;
        for (auto c = at + name.size(); c != headers.end() && *c != '\r'; ++c)
            if (*c >= '0' && *c <= '9') length = 10 * length + static_cast<std::size_t>(*c - '0');
        return length;
    }
};

}  // namespace sigd::bench
