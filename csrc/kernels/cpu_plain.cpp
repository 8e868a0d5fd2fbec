#define COMMPRESS_ISA path_plain
#include "lanes_plain.h"
// The lanes come first: everything below is written in terms of them.
#include "codec_loops.h"
#include "product_loops.h"
