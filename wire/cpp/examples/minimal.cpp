// The least that an engine needs: connect, send a row of features, use the answer.
//
//     minimal SOCKET
#include <cstdio>
#include <vector>

#include <sigd/sigd.hpp>

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: minimal SOCKET\n");
        return 2;
    }
    sigd::Client client;
    if (client.connect({.path = argv[1], .client_name = "minimal"}) != sigd::Errc::none) {
        std::fprintf(stderr, "%s\n", client.error().text);
        return 1;
    }
    const auto& welcome = client.welcome();
    std::printf("%.32s: %u features, %u outputs\n", welcome.model_name, welcome.features, welcome.outputs);

    std::vector<float> features(welcome.features);
    for (int request = 0; request < 5; ++request) {
        features[0] = 0.25F * static_cast<float>(request);
        const std::uint64_t sent_ns = sigd::clock_ns();
        const auto answer = client.request(features, {.instrument_id = 7, .deadline_ns = sent_ns + 50'000'000});
        if (!answer) {
            const bool alive = answer.code() == sigd::Errc::none;
            std::fprintf(stderr, "%s\n", alive ? "no answer in time" : client.error().text);
            return 1;
        }
        const sigd::Response& response = **answer;
        std::printf("request %llu: %s in %.1f us, outputs", static_cast<unsigned long long>(response.sequence),
                    sigd::wire::name(response.status), static_cast<double>(sigd::clock_ns() - sent_ns) / 1e3);
        for (const float output : response.outputs) std::printf(" %.4f", static_cast<double>(output));
        std::printf("\n");
    }

    if (client.goodbye() != sigd::Errc::none) return 1;
    return client.wait().code() == sigd::Errc::finished ? 0 : 1;
}
