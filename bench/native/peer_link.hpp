// What the links to anything but a daemon have in common. A session writes a request frame of the wire and is handed an
// answer frame of the wire; in between the features travel as the peer wants them, and its outputs come back.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <arpa/inet.h>

#include <sigd/connect.hpp>

#include "link.hpp"
#include "platform.hpp"
#include "violation.hpp"

namespace sigd::bench {

class PeerLink {
public:
    explicit PeerLink(Violation& violation) : violation_(violation) {}

    std::byte* slot() { return request_.data(); }

protected:
    // Takes the sizes of the model from the plan's Hello, for the peer says nothing of them.
    void prepare(const Spec& spec, std::uint64_t in_flight, wire::Welcome& welcome) {
        welcome = {};
        welcome.header = wire::make_header(wire::TemplateId::welcome, sizeof welcome);
        welcome.features = spec.features;
        welcome.outputs = outputs_ = spec.outputs;
        welcome.in_flight_max = static_cast<std::uint32_t>(in_flight);
        welcome.model_generation = 1;
        feature_bytes_ = sizeof(float) * spec.features;
        request_.resize(wire::request_frame_bytes(spec.features));
        answer_.resize(wire::response_frame_bytes(spec.outputs));
        std::size_t slots = 1;
        while (slots < in_flight) slots *= 2;
        asked_.resize(slots);
    }

    const std::byte* features() const { return request_.data() + sizeof(wire::SignalRequestHead); }
    std::size_t feature_bytes() const { return feature_bytes_; }
    std::size_t output_bytes() const { return sizeof(float) * outputs_; }
    std::size_t slots() const { return asked_.size(); }
    std::uint64_t asked() const { return asked_count_; }
    std::uint64_t answered() const { return answered_count_; }

    // To be called with each request that is handed to the peer.
    void note_asked() {
        asked_[asked_count_ & (asked_.size() - 1)] = load<wire::SignalRequestHead>(request_.data());
        ++asked_count_;
    }

    // Hands over the outputs of the oldest request without an answer, as an answer that spent infer_ns in the model.
    template <class Take>
    Met answer(const void* outputs, std::int64_t now_ns, std::uint32_t infer_ns, Take&& take) {
        if (answered_count_ == asked_count_) {
            violation_.note(ViolationKind::unsolicited, 0, 0, "nothing was asked");
            return Met::broken;
        }
        const wire::SignalRequestHead& asked = asked_[answered_count_ & (asked_.size() - 1)];
        ++answered_count_;
        wire::SignalResponseHead head{};
        head.header = wire::make_header(wire::TemplateId::signal_response, answer_.size());
        head.sequence = asked.sequence;
        head.client_time_ns = asked.client_time_ns;
        head.receive_time_ns = asked.client_time_ns;
        head.send_time_ns = asked.client_time_ns + infer_ns;
        head.instrument_id = asked.instrument_id;
        head.model_generation = 1;
        head.infer_ns = infer_ns;
        head.batch_rows = 1;
        std::memcpy(answer_.data(), &head, sizeof head);
        std::memcpy(answer_.data() + sizeof head, outputs, output_bytes());
        return take(answer_.data(), Carries::everything, now_ns) ? Met::frames : Met::broken;
    }

    Met refused(const std::string& words) {
        violation_.note(ViolationKind::rejected, 0, 0, words.c_str());
        return Met::broken;
    }

private:
    Violation& violation_;
    std::vector<std::byte> request_;
    std::vector<std::byte> answer_;
    std::vector<wire::SignalRequestHead> asked_;
    std::uint64_t asked_count_ = 0;
    std::uint64_t answered_count_ = 0;
    std::size_t feature_bytes_ = 0;
    std::uint32_t outputs_ = 0;
};

// A link over a socket: the path of a Unix socket, or 127.0.0.1:PORT.
class SocketLink : public PeerLink {
public:
    using PeerLink::PeerLink;

    bool pending() const { return out_begin_ != out_.size(); }

    // False with errno where the peer takes no more.
    bool flush() {
        while (pending()) {
            const ssize_t put = send(socket_.get(), out_.data() + out_begin_, out_.size() - out_begin_,
                                     MSG_NOSIGNAL | MSG_DONTWAIT);
            if (put < 0) return would_block();
            out_begin_ += static_cast<std::size_t>(put);
        }
        out_.clear();
        out_begin_ = 0;
        return true;
    }

protected:
    Errc connect_to(const std::string& where, Error& error) {
        in_.resize(1 << 16);
        out_.reserve(1 << 16);
        if (!where.empty() && where[0] == '/') {
            sockaddr_un address{};
            address.sun_family = AF_UNIX;
            std::memcpy(address.sun_path, where.data(), std::min(where.size(), sizeof address.sun_path - 1));
            return connect_socket(AF_UNIX, address, where, error);
        }
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        const auto colon = where.rfind(':');
        if (colon == std::string::npos) return error.set(Errc::invalid_argument, "%s is no address", where.c_str());
        address.sin_port = htons(static_cast<std::uint16_t>(std::stoul(where.substr(colon + 1))));
        return connect_socket(AF_INET, address, where, error);
    }

    void put(const void* bytes, std::size_t count) {
        const auto* from = static_cast<const std::byte*>(bytes);
        out_.insert(out_.end(), from, from + count);
    }
    void put(const std::string& bytes) { put(bytes.data(), bytes.size()); }

    // Reads once; what has come is from in() on, and consume() takes it away.
    Met read_once() {
        if (in_size_ == in_.size()) in_.resize(2 * in_.size());
        const ssize_t got = recv(socket_.get(), in_.data() + in_size_, in_.size() - in_size_, MSG_DONTWAIT);
        if (got < 0) return would_block() ? Met::nothing : Met::closed;
        errno = 0;
        if (got == 0) return Met::closed;
        in_size_ += static_cast<std::size_t>(got);
        return Met::frames;
    }
    const std::byte* in() const { return in_.data(); }
    std::size_t in_size() const { return in_size_; }
    void consume(std::size_t bytes) {
        std::memmove(in_.data(), in_.data() + bytes, in_size_ - bytes);
        in_size_ -= bytes;
    }

private:
    template <class Address>
    Errc connect_socket(int family, const Address& address, const std::string& where, Error& error) {
        socket_ = Descriptor(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
        if (connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
            return error.set(Errc::connect_failed, "%s: %s", where.c_str(), std::strerror(errno));
        const int at_once = 1;
        if (family == AF_INET) (void)setsockopt(socket_.get(), IPPROTO_TCP, TCP_NODELAY, &at_once, sizeof at_once);
        return Errc::none;
    }

    Descriptor socket_;
    std::vector<std::byte> in_;
    std::size_t in_size_ = 0;
    std::vector<std::byte> out_;
    std::size_t out_begin_ = 0;
};

}  // namespace sigd::bench
