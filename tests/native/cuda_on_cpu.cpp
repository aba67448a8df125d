// The CUDA build on a CPU: device.cu as it is, and a way to launch its kernels.
#include "cuda_on_cpu.h"
#include "../../kernels/device.cu"

#define ENTRY extern "C" __attribute__((visibility("default")))

ENTRY void emulate(emulation::Kernel kernel, u32 grid, u32 block, u32 threads, const u64* arguments) {
  emulation::run({kernel, arguments, {grid, 1, 1}, {block, 1, 1}}, threads);
}
ENTRY void seed(u64 value) { emulation::state = value * 2 + 1; }
// Switches at an atomic operation, masks of more than one lane, lanes that waited for a mask and were left out of it.
ENTRY void exercised(u64* counts) {
  counts[0] = emulation::switches;
  counts[1] = emulation::masks_of_many;
  counts[2] = emulation::left_out;
}
