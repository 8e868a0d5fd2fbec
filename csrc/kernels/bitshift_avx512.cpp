#define COMMPRESS_ISA path_avx512
#define THIS_ISA Isa::AVX512
#include "trellis_lanes_avx512.h"
// The lanes come first: everything below is written in terms of them.
#include "bitshift_loops.h"
