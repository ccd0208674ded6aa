// The first breach of the contract: it ends the run and is quoted.
#pragma once

#include <cstdint>
#include <cstdio>

#include "exchange.hpp"

namespace sigd::bench {

struct Violation {
    ViolationKind kind = ViolationKind::none;
    std::uint64_t connection = 0;
    std::uint64_t expected = 0;
    std::uint64_t found = 0;
    char text[violation_text_bytes] = {};

    // Notes what was found; false, which its callers hand on.
    bool note(ViolationKind what, std::uint64_t was_expected, std::uint64_t was_found, const char* words) {
        kind = what;
        expected = was_expected;
        found = was_found;
        std::snprintf(text, sizeof text, "%s", words);
        return false;
    }
};

}  // namespace sigd::bench
