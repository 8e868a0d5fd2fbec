// What of the encoder of the entropy-coded quantisers is tested by itself, under the emulator.
#pragma once
#include <cstdint>
#include <vector>

namespace commpress {
namespace cuda {

// Whether streams of so many bytes and escapes find a place in a segment of `nbytes`, whose body ends at `body`; all
// threads have to say the same.
bool streams_fit(const std::vector<uint32_t>& streams, const std::vector<uint32_t>& escaped, uint32_t body,
                 uint32_t nbytes);

}  // namespace cuda
}  // namespace commpress
