#define COMMPRESS_ISA path_avx2
#include "lanes_avx2.h"
// The lanes come first: everything below is written in terms of them.
#include "codec_loops.h"
#include "product_loops.h"
