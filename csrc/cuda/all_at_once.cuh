// Two passes in one launch, where the second one needs what the first one has summed: all blocks of the grid are on the
// device at once (a cooperative launch asks for that), and between the passes they wait for each other. So nothing lies
// between the passes but the wait, and what the first one has read last is in the cache when the second one begins.
#pragma once
#include <cooperative_groups.h>

#include "channels.cuh"
#include "launch.h"

namespace ckd::cuda {

// Until all blocks of the grid are here; what they have written until then is there for all. Only in a cooperative
// launch.
CKD_DEVICE void wait_for_grid() { cooperative_groups::this_grid().sync(); }

// Visits the blocks of a cut, of which there may be more than the grid has, with use(block).
template <class Use>
CKD_DEVICE void visit_blocks(unsigned blocks, Use&& use) {
#pragma unroll 1
  for (unsigned block = blockIdx.x; block < blocks; block += gridDim.x) {
    if (block != blockIdx.x) __syncthreads();  // shared memory is still being read
    use(block);
  }
}

// The same, the last one first.
template <class Use>
CKD_DEVICE void visit_blocks_back(unsigned blocks, Use&& use) {
  if (blockIdx.x >= blocks) return;
  const unsigned more = (blocks - 1 - blockIdx.x) / gridDim.x;
#pragma unroll 1
  for (unsigned i = 0; i <= more; ++i) use(blockIdx.x + (more - i) * gridDim.x);
}

// Spreads the channels over the warps of the grid; finish(channel, first, second) is what comes of their sums.
template <class Finish>
CKD_DEVICE void add_slices_of_grid(const ChannelCut& cut, Finish&& finish) {
  const unsigned warps = blockDim.x / 32, warp = threadIdx.x / 32;
  for (int64_t channel = blockIdx.x + int64_t{gridDim.x} * warp; channel < cut.channels;
       channel += int64_t{gridDim.x} * warps) {
    add_slices(cut, channel, finish);
  }
}

// Blocks of a kernel that the current device has room for at once; 0: it has no cooperative launches.
template <class Call>
cudaError_t blocks_at_once(void (*kernel)(Call), const LaunchSize& size, unsigned& blocks) {
  blocks = 0;
  int device = 0, cooperative = 0, processors = 0, each = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device);
  if (status != cudaSuccess || !cooperative) return status;
  status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (status == cudaSuccess) {
    status =
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, static_cast<int>(size.threads), size.shared_bytes);
  }
  blocks = static_cast<unsigned>(processors) * static_cast<unsigned>(each);
  return status;
}

// Whether a call whose first pass reads `tensors` of a shape is best made in one launch: where a part of them that is
// worth it is in the cache still. CKD_BN_LAUNCHES asks for one or several, to test them or to time them.
bool is_best_at_once(const Shape& shape, size_t value_bytes, int tensors);

// Launches at most size.blocks blocks, as many as the device has room for.
template <class Call>
cudaError_t launch_at_once(void (*kernel)(Call), const LaunchSize& size, void* stream, const Call& call) {
  unsigned room = 0;
  cudaError_t status = blocks_at_once(kernel, size, room);
  if (status == cudaSuccess && room == 0) status = cudaErrorInvalidConfiguration;
  if (status == cudaSuccess) {
    void* arguments[] = {const_cast<Call*>(&call)};
    status = cudaLaunchCooperativeKernel(kernel, dim3(std::min(size.blocks, room)), dim3(size.threads), arguments,
                                         size.shared_bytes, static_cast<cudaStream_t>(stream));
  }
  if (status != cudaSuccess) cudaGetLastError();
  return status;
}

}  // namespace ckd::cuda
