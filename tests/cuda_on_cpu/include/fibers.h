// Runs a CUDA grid on a CPU: blocks one after another, the threads of a block as fibers that take turns at barriers and
// shuffles. It checks what a GPU does not: barriers that not all threads reach, shuffles with lanes that are not there,
// shared memory beyond what the launch asked for. The order in which threads run is chosen by the test.
#pragma once
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline uint3 threadIdx{}, blockIdx{};
inline dim3 blockDim, gridDim;

// A kernel's dynamic shared memory; the kernels declare it without a size.
inline constexpr size_t kSharedLimit = 48 * 1024;
alignas(16) inline unsigned char fiber_shared_memory[kSharedLimit];

namespace fibers {

inline constexpr int kWarp = 32;
inline constexpr size_t kStackBytes = 256 * 1024;

// The number of the mistake that a test has planted in a copy of the kernels and wants made; -1: none.
inline int mutant() {
  static const int number = std::getenv("CKD_MUTANT") ? std::atoi(std::getenv("CKD_MUTANT")) : -1;
  return number;
}

enum class Order { kForward, kReverse, kRandom };

struct Settings {
  Order order = Order::kForward;
  unsigned seed = 1;
  std::vector<std::string> errors;
  size_t threads_run = 0;
};
inline Settings& settings() {
  static Settings instance;
  return instance;
}

enum class State { kReady, kAtBarrier, kAtShuffle, kDone };

struct Fiber {
  ucontext_t context{};
  char* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's, while the fiber waits
  State state = State::kReady;
  int barriers = 0;
  unsigned mask = 0;  // of the shuffle it waits in
  int source = 0;
  uint64_t offered = 0, received = 0;
};

class Block {
 public:
  static Block& current() {
    static Block block;
    return block;
  }

  // Runs one block of `threads` threads; false where it cannot end.
  bool run(const std::function<void()>& body, int threads) {
    body_ = &body;
    prepare(threads);
    std::vector<int> order(threads);
    std::iota(order.begin(), order.end(), 0);
    if (settings().order == Order::kReverse) std::reverse(order.begin(), order.end());
    std::mt19937 random(settings().seed + blockIdx.x);
    for (;;) {
      if (settings().order == Order::kRandom) std::shuffle(order.begin(), order.end(), random);
      bool progress = false;
      for (int thread : order) {
        if (fibers_[thread].state != State::kReady) continue;
        resume(thread);
        progress = true;
      }
      progress |= exchange_shuffles();
      const int done = count(State::kDone), waiting = count(State::kAtBarrier);
      if (done == threads) return true;
      if (waiting == threads) {
        for (Fiber& f : fibers_) f.state = State::kReady;
      } else if (waiting > 0 && waiting + done == threads) {
        return fail(std::to_string(done) + " threads have left the kernel while " + std::to_string(waiting) +
                    " wait in __syncthreads");
      } else if (!progress) {
        return fail("a warp waits in a shuffle for lanes that never come");
      }
    }
  }

  void barrier() {
    current_fiber().state = State::kAtBarrier;
    suspend();
  }

  uint64_t shuffle(unsigned mask, int source, uint64_t value) {
    Fiber& fiber = current_fiber();
    if (!(mask >> (running_ % kWarp) & 1)) fail("a lane calls a shuffle whose mask leaves it out");
    fiber.mask = mask;
    fiber.source = source;
    fiber.offered = value;
    fiber.state = State::kAtShuffle;
    suspend();
    return fiber.received;
  }

  int running() const { return running_; }

  bool fail(const std::string& what) {
    settings().errors.push_back(what + " (block " + std::to_string(blockIdx.x) + ")");
    return false;
  }

 private:
  Fiber& current_fiber() { return fibers_[running_]; }

  int count(State state) const {
    return static_cast<int>(
        std::count_if(fibers_.begin(), fibers_.end(), [&](const Fiber& f) { return f.state == state; }));
  }

  void prepare(int threads) {
    while (static_cast<int>(stacks_.size()) < threads) {
      void* memory =
          mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) std::abort();
      stacks_.push_back(static_cast<char*>(memory));
    }
    fibers_.assign(threads, Fiber{});
    for (int i = 0; i < threads; ++i) {
      Fiber& fiber = fibers_[i];
      fiber.stack = stacks_[i];
      ASAN_UNPOISON_MEMORY_REGION(fiber.stack, kStackBytes);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack;
      fiber.context.uc_stack.ss_size = kStackBytes;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, &Block::enter, 0);
    }
    settings().threads_run += threads;
  }

  static void enter() {
    Block& block = current();
    block.arrived(nullptr);
    (*block.body_)();
    block.current_fiber().state = State::kDone;
    block.suspend();
  }

  void resume(int thread) {
    running_ = thread;
    threadIdx = {static_cast<unsigned>(thread), 0, 0};
    Fiber& fiber = fibers_[thread];
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber.stack, kStackBytes);
    swapcontext(&scheduler_, &fiber.context);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    swapcontext(&scheduler_, &fiber.context);
#endif
  }

  // Back to the scheduler, until it resumes this fiber.
  void suspend() {
    Fiber& fiber = current_fiber();
#if defined(__SANITIZE_ADDRESS__)
    const bool ends = fiber.state == State::kDone;
    __sanitizer_start_switch_fiber(ends ? nullptr : &fiber.fake_stack, scheduler_stack_, scheduler_stack_size_);
#endif
    swapcontext(&fiber.context, &scheduler_);
    arrived(fiber.fake_stack);
  }

  void arrived(void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack_, &scheduler_stack_size_);
#else
    (void)fake_stack;
#endif
  }

  // Completes the shuffles whose lanes have all arrived.
  bool exchange_shuffles() {
    bool progress = false;
    const int threads = static_cast<int>(fibers_.size());
    for (int first = 0; first < threads; first += kWarp) {
      const int lanes = std::min(kWarp, threads - first);
      unsigned waiting = 0, wanted = 0;
      for (int lane = 0; lane < lanes; ++lane) {
        const Fiber& fiber = fibers_[first + lane];
        if (fiber.state != State::kAtShuffle) continue;
        waiting |= 1u << lane;
        wanted |= fiber.mask;
      }
      if (waiting == 0) continue;
      if (lanes < kWarp) wanted &= (1u << lanes) - 1;  // lanes of an incomplete last warp do not exist
      if (wanted & ~waiting) continue;
      for (int lane = 0; lane < lanes; ++lane) {
        Fiber& fiber = fibers_[first + lane];
        if (!(waiting >> lane & 1)) continue;
        if (fiber.source < 0 || fiber.source >= lanes || !(waiting >> fiber.source & 1)) {
          fail("a shuffle reads a lane that does not take part");
          continue;
        }
        fiber.received = fibers_[first + fiber.source].offered;
      }
      for (int lane = 0; lane < lanes; ++lane) {
        if (waiting >> lane & 1) fibers_[first + lane].state = State::kReady;
      }
      progress = true;
    }
    return progress;
  }

  std::vector<Fiber> fibers_;
  std::vector<char*> stacks_;
  const std::function<void()>* body_ = nullptr;
  ucontext_t scheduler_{};
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_size_ = 0;
  int running_ = 0;
};

// Runs a grid; false where a GPU would refuse the launch.
inline bool run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  const bool valid = grid.x > 0 && grid.x <= 2147483647u && grid.y == 1 && grid.z == 1 && block.x > 0 &&
                     block.x <= 1024 && block.y == 1 && block.z == 1 && shared_bytes <= kSharedLimit;
  if (!valid) return false;
  gridDim = grid;
  blockDim = block;
  for (unsigned i = 0; i < grid.x; ++i) {
    blockIdx = {i, 0, 0};
    ASAN_UNPOISON_MEMORY_REGION(fiber_shared_memory, kSharedLimit);
    std::memset(fiber_shared_memory, 0xFF, kSharedLimit);  // NaN: nothing may count on what lies there
    ASAN_POISON_MEMORY_REGION(fiber_shared_memory + shared_bytes, kSharedLimit - shared_bytes);
    if (!Block::current().run(body, static_cast<int>(block.x))) break;
  }
  return true;
}

}  // namespace fibers
