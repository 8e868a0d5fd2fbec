#define COMMPRESS_ISA path_plain
#define THIS_ISA Isa::PLAIN
#include "trellis_lanes_plain.h"
// The lanes come first: everything below is written in terms of them.
#include "bitshift_loops.h"
