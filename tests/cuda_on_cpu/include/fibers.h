// Runs a CUDA grid on a CPU: blocks one after another, or, of a cooperative launch, taking turns at the grid's barrier;
// the threads of a block as fibers that take turns at barriers and shuffles. It checks what a GPU does not: barriers
// that not all threads reach, shuffles with lanes that are not there, shared memory beyond what the launch asked for.
// The order in which threads and blocks run is chosen by the test.
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

enum class State { kReady, kAtBarrier, kAtShuffle, kAtGrid, kDone };

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
  // The one that runs.
  static Block& current() { return *running_block(); }

  ~Block() {
    for (const Fiber& fiber : fibers_) spare_stacks().push_back(fiber.stack);
  }

  // One block of `threads` threads, which go() runs.
  void begin(const std::function<void()>& body, unsigned index, int threads, size_t shared_bytes) {
    body_ = &body;
    index_ = index;
    shared_.assign(shared_bytes, 0xFF);  // NaN: nothing may count on what lies there
    prepare(threads);
    random_.seed(settings().seed + index);
  }

  enum class Outcome { kEnded, kAtGrid, kFailed };

  // Runs it to its end or to the grid's barrier.
  Outcome go() {
    running_block() = this;
    blockIdx = {index_, 0, 0};
    std::memcpy(fiber_shared_memory, shared_.data(), shared_.size());
    ASAN_POISON_MEMORY_REGION(fiber_shared_memory + shared_.size(), kSharedLimit - shared_.size());
    const Outcome outcome = turns();
    ASAN_UNPOISON_MEMORY_REGION(fiber_shared_memory, kSharedLimit);
    std::memcpy(shared_.data(), fiber_shared_memory, shared_.size());
    return outcome;
  }

  void leave_grid_barrier() {
    for (Fiber& f : fibers_) f.state = State::kReady;
  }

  void grid_barrier() {
    current_fiber().state = State::kAtGrid;
    suspend();
  }

 private:
  Outcome turns() {
    const int threads = static_cast<int>(fibers_.size());
    std::vector<int> order(threads);
    std::iota(order.begin(), order.end(), 0);
    if (settings().order == Order::kReverse) std::reverse(order.begin(), order.end());
    for (;;) {
      if (settings().order == Order::kRandom) std::shuffle(order.begin(), order.end(), random_);
      bool progress = false;
      for (int thread : order) {
        if (fibers_[thread].state != State::kReady) continue;
        resume(thread);
        progress = true;
      }
      progress |= exchange_shuffles();
      const int done = count(State::kDone), waiting = count(State::kAtBarrier);
      if (done == threads) return Outcome::kEnded;
      if (count(State::kAtGrid) == threads) return Outcome::kAtGrid;
      if (waiting == threads) {
        for (Fiber& f : fibers_) f.state = State::kReady;
      } else if (waiting > 0 && waiting + done == threads) {
        fail(std::to_string(done) + " threads have left the kernel while " + std::to_string(waiting) +
             " wait in __syncthreads");
        return Outcome::kFailed;
      } else if (!progress) {
        fail("threads wait in a shuffle, or for the grid, for others that never come");
        return Outcome::kFailed;
      }
    }
  }

 public:
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

  static Block*& running_block() {
    static Block* block = nullptr;
    return block;
  }
  static std::vector<char*>& spare_stacks() {
    static std::vector<char*> stacks;
    return stacks;
  }
  static char* take_stack() {
    if (spare_stacks().empty()) {
      void* memory =
          mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) std::abort();
      return static_cast<char*>(memory);
    }
    char* stack = spare_stacks().back();
    spare_stacks().pop_back();
    return stack;
  }

  void prepare(int threads) {
    fibers_.assign(threads, Fiber{});
    for (Fiber& fiber : fibers_) {
      fiber.stack = take_stack();
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
  std::vector<unsigned char> shared_;
  unsigned index_ = 0;
  std::mt19937 random_;
  const std::function<void()>* body_ = nullptr;
  ucontext_t scheduler_{};
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_size_ = 0;
  int running_ = 0;
};

// Runs blocks that are all there at once.
inline void run_together(unsigned blocks, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  std::vector<Block> all(blocks);
  for (unsigned i = 0; i < blocks; ++i) all[i].begin(body, i, static_cast<int>(block.x), shared_bytes);
  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  if (settings().order == Order::kReverse) std::reverse(order.begin(), order.end());
  std::mt19937 random(settings().seed);
  for (;;) {
    if (settings().order == Order::kRandom) std::shuffle(order.begin(), order.end(), random);
    unsigned ended = 0;
    for (unsigned i : order) {
      const Block::Outcome outcome = all[i].go();
      if (outcome == Block::Outcome::kFailed) return;
      ended += outcome == Block::Outcome::kEnded;
    }
    if (ended == blocks) return;
    if (ended > 0) {
      all[0].fail(std::to_string(ended) + " blocks have left the kernel while others wait for the grid");
      return;
    }
    for (Block& b : all) b.leave_grid_barrier();
  }
}

// Runs a grid; false where a GPU would refuse the launch.
inline bool run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body,
                     bool cooperative = false) {
  const bool valid = grid.x > 0 && grid.x <= 2147483647u && grid.y == 1 && grid.z == 1 && block.x > 0 &&
                     block.x <= 1024 && block.y == 1 && block.z == 1 && shared_bytes <= kSharedLimit;
  if (!valid) return false;
  gridDim = grid;
  blockDim = block;
  if (cooperative) {
    run_together(grid.x, block, shared_bytes, body);
    return true;
  }
  for (unsigned i = 0; i < grid.x; ++i) {
    Block one;
    one.begin(body, i, static_cast<int>(block.x), shared_bytes);
    const Block::Outcome outcome = one.go();
    if (outcome == Block::Outcome::kAtGrid) one.fail("a kernel waits for its grid, which was not launched for that");
    if (outcome != Block::Outcome::kEnded) break;
  }
  return true;
}

}  // namespace fibers
