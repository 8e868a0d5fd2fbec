#define COMMPRESS_ISA path_avx2
#define THIS_ISA Isa::AVX2
#include "trellis_lanes_avx2.h"
// The lanes come first: everything below is written in terms of them.
#include "bitshift_loops.h"
