#define COMMPRESS_ISA path_avx512
#include "lanes_avx512.h"
// The lanes come first: everything below is written in terms of them.
#include "codec_loops.h"
#include "product_loops.h"
