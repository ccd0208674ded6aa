// What the two native programs know of the wire: the few offsets they read and patch.
// Whole frames (Hello, requests) come ready-made from the Python codec, which is the one source of the layout;
// tests/bench/test_native_layout.py holds these numbers against it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace sigd {

constexpr std::uint16_t schema_id = 91;
constexpr std::size_t header_bytes = 8;

enum class Template : std::uint16_t {
    hello = 1, welcome = 2, reject = 3, heartbeat = 4, goodbye = 5, signal_request = 10, signal_response = 11,
};

struct Header {
    std::uint16_t block_length;
    std::uint16_t template_id;
    std::uint16_t schema_id;
    std::uint16_t version;
};
static_assert(sizeof(Header) == header_bytes);

struct Hello {
    Header header;
    std::uint32_t features;
    std::uint32_t outputs;
    std::uint16_t transport;
    std::uint16_t flags;
    std::uint32_t ring_slots;
    char client_name[24];
    char model_name[32];
};
static_assert(sizeof(Hello) == 80);

struct Welcome {
    Header header;
    std::uint32_t features;
    std::uint32_t outputs;
    std::uint32_t in_flight_max;
    std::uint32_t model_generation;
    std::uint64_t daemon_pid;
    std::uint64_t clock_ns;
    std::uint16_t transport;
    std::uint16_t flags;
    std::uint32_t ring_slots;
    std::uint32_t request_stride;
    std::uint32_t response_stride;
    std::uint64_t reserved;
    std::uint8_t model_sha256[32];
    char model_name[32];
};
static_assert(sizeof(Welcome) == 128);

struct Reject {
    Header header;
    std::uint16_t code;
    std::uint16_t reserved16;
    std::uint32_t reserved32;
    char reason[64];
};
static_assert(sizeof(Reject) == 80);

// The part of a request before its features.
struct RequestHead {
    Header header;
    std::uint64_t sequence;
    std::uint64_t client_time_ns;
    std::uint64_t deadline_ns;
    std::uint32_t instrument_id;
    std::uint16_t flags;
    std::uint16_t reserved;
};
static_assert(sizeof(RequestHead) == 40);

// The part of a response before its outputs.
struct ResponseHead {
    Header header;
    std::uint64_t sequence;
    std::uint64_t client_time_ns;
    std::uint64_t receive_time_ns;
    std::uint64_t send_time_ns;
    std::uint32_t instrument_id;
    std::uint32_t model_generation;
    std::uint32_t infer_ns;
    std::uint16_t status;
    std::uint16_t batch_rows;
};
static_assert(sizeof(ResponseHead) == 56);

constexpr std::uint16_t status_ok = 0;
constexpr std::uint16_t status_count = 7;

constexpr std::size_t padded_to_8(std::size_t bytes) { return (bytes + 7) / 8 * 8; }
constexpr std::size_t request_bytes(std::size_t features) { return padded_to_8(sizeof(RequestHead) + 4 * features); }
constexpr std::size_t response_bytes(std::size_t outputs) { return padded_to_8(sizeof(ResponseHead) + 4 * outputs); }

// Frames lie at any multiple of 8 in a byte buffer; reading them by copy is what C++ defines, and costs nothing.
template <typename T>
T read_as(const std::uint8_t* bytes) {
    T value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
}

}  // namespace sigd
