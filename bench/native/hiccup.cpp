// How long this core is taken away from a thread that never lets go of it: spins on the clock and keeps the gaps.
//
//     hiccup SECONDS THRESHOLD_NS CPU
//
// Prints one line: nanoseconds spun, readings, gaps at or above the threshold, their sum in ns, the worst gap in ns,
// and the median cost of one reading in ns.

#include "platform.hpp"

#include <algorithm>
#include <array>
#include <cinttypes>

int main(int argc, char** argv) {
    if (argc != 4) {
        std::fprintf(stderr, "usage: hiccup SECONDS THRESHOLD_NS CPU\n");
        return 2;
    }
    sigd::bench::pin(std::strtoll(argv[3], nullptr, 10));
    const auto spin_ns = static_cast<std::int64_t>(1e9 * std::strtod(argv[1], nullptr));
    const std::int64_t threshold_ns = std::strtoll(argv[2], nullptr, 10);

    std::array<std::int64_t, 1001> costs;
    for (auto& cost : costs) {
        // One reading is too short for the clock's own grain, so eight are taken together.
        const std::int64_t begin = sigd::bench::clock_ns();
        for (int i = 0; i < 7; ++i) (void)sigd::bench::clock_ns();
        cost = sigd::bench::clock_ns() - begin;
    }
    std::nth_element(costs.begin(), costs.begin() + costs.size() / 2, costs.end());

    std::int64_t readings = 0, gaps = 0, taken_ns = 0, worst_ns = 0;
    const std::int64_t begin = sigd::bench::clock_ns();
    std::int64_t last = begin;
    while (last - begin < spin_ns) {
        const std::int64_t now = sigd::bench::clock_ns();
        const std::int64_t gap = now - last;
        if (gap >= threshold_ns) {
            ++gaps;
            taken_ns += gap;
        }
        worst_ns = std::max(worst_ns, gap);
        last = now;
        ++readings;
    }
    std::printf("%" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %.1f\n", last - begin, readings, gaps,
                taken_ns, worst_ns, static_cast<double>(costs[costs.size() / 2]) / 8.0);
    return 0;
}
