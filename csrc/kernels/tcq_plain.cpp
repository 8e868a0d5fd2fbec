#define COMMPRESS_ISA path_plain
#include "trellis_lanes_plain.h"
// The lanes come first: everything below is written in terms of them.
#include "tcq_search.h"
