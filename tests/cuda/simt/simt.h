// What a CUDA kernel sees when it is compiled for the host and run by the emulator: every thread of every block in
// flight is a fiber, and the kernel's source is ordinary C++. engine.h has how to launch and to choose a schedule.
//
// Kernels declare shared memory as `auto& name = simt::shared_array<T, N>([] {})`, with no further mark. A polling loop
// must call __nanosleep, which is what lets the other threads run.
#pragma once
#include "atomics.h"
#include "block.h"
#include "engine.h"
#include "intrinsics.h"
#include "types.h"
#include "warp.h"
