// Faults planted in small kernels, each with a sound twin.
#pragma once

void list_faults();
void run_fault(const char* name, bool planted);
void run_sound_twins();
