// The load generator for what is no daemon: the same plan, schedule and checks, another way to ask.
//
//     peers PLAN RESULT http HEAD                 HEAD in hexadecimal: what precedes the features of each request
//     peers PLAN RESULT grpc METHOD HEAD
//     peers PLAN RESULT onnxruntime LIBRARY MODEL INPUT OUTPUT 1x64       the input's axes
//     peers PLAN RESULT lightgbm LIBRARY MODEL
//     peers PLAN RESULT lleaves LIBRARY
//
// The plan's socket path is a Unix socket, or 127.0.0.1:PORT.

#include <cstdio>
#include <sstream>
#include <string>
#include <string_view>

#include "grpc_link.hpp"
#include "http_link.hpp"
#include "in_process.hpp"
#include "run.hpp"

namespace sigd::bench {
namespace {

std::string from_hex(std::string_view digits) {
    std::string bytes;
    for (std::size_t i = 0; i + 1 < digits.size(); i += 2)
        bytes += static_cast<char>(std::stoi(std::string(digits.substr(i, 2)), nullptr, 16));
    return bytes;
}

std::vector<std::int64_t> axes(const std::string& joined) {
    std::vector<std::int64_t> found;
    std::istringstream parts(joined);
    for (std::string part; std::getline(parts, part, 'x');) found.push_back(std::stoll(part));
    return found;
}

template <class Model>
void carry_out_in_process(const Plan& plan, const char* result) {
    Model engine;
    InProcessLink::engine = &engine;
    carry_out<InProcessLink>(plan, result);
}

int usage() {
    std::fprintf(stderr, "usage: peers PLAN RESULT http|grpc|onnxruntime|lightgbm|lleaves ..., see peers.cpp\n");
    return 2;
}

int carry_out_with(const Plan& plan, const char* result, std::string_view kind, int count, char** words) {
    if (kind == "http" && count == 1) {
        HttpLink::head = from_hex(words[0]);
        carry_out<HttpLink>(plan, result);
    } else if (kind == "grpc" && count == 2) {
        GrpcLink::method = words[0];
        GrpcLink::head = from_hex(words[1]);
        carry_out<GrpcLink>(plan, result);
    } else if (kind == "onnxruntime" && count == 5) {
        OnnxRuntime::library = words[0];
        OnnxRuntime::model = words[1];
        OnnxRuntime::input = words[2];
        OnnxRuntime::output = words[3];
        OnnxRuntime::dims = axes(words[4]);
        carry_out_in_process<OnnxRuntime>(plan, result);
    } else if (kind == "lightgbm" && count == 2) {
        LightGbm::library = words[0];
        LightGbm::model = words[1];
        carry_out_in_process<LightGbm>(plan, result);
    } else if (kind == "lleaves" && count == 1) {
        Lleaves::library = words[0];
        carry_out_in_process<Lleaves>(plan, result);
    } else {
        return usage();
    }
    return 0;
}

}  // namespace
}  // namespace sigd::bench

int main(int argc, char** argv) {
    using namespace sigd::bench;
    if (argc < 4) return usage();
    const Plan plan = map_plan(argv[1]);
    pin(plan.header->cpu);
    return carry_out_with(plan, argv[2], argv[3], argc - 4, argv + 4);
}
