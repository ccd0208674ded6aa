// The C++20 client of sigd: header-only, no exceptions and no allocation after connect(), explicit errors.
//
//     sigd::Client client;
//     if (client.connect({.path = "/run/sigd/sigd.sock"}) != sigd::Errc::none) return fail(client.error().text);
//     const auto answer = client.request(features);
//     if (answer && (*answer)->ok()) use((*answer)->outputs);
//
// docs/cpp.md has the rest.
#pragma once

#include "client.hpp"         // IWYU pragma: export
#include "connect.hpp"        // IWYU pragma: export
#include "conversation.hpp"   // IWYU pragma: export
#include "reconnect.hpp"      // IWYU pragma: export
#include "result.hpp"         // IWYU pragma: export
#include "ring.hpp"           // IWYU pragma: export
#include "shared_memory.hpp"  // IWYU pragma: export
#include "sigd_wire.hpp"      // IWYU pragma: export
#include "stream.hpp"         // IWYU pragma: export
