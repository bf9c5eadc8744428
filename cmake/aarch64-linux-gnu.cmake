# Cross build for 64-bit Arm Linux with Debian's and Ubuntu's g++-aarch64-linux-gnu; programs run under qemu-aarch64.
# The environment variable QEMU_CPU names the CPU and with it the kernels: cortex-a53 has plain NEON, cortex-a76 dot
# products, max everything. Shows that kernels are right on Arm; speed needs a machine of that kind.

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
find_program(CMAKE_CXX_COMPILER NAMES aarch64-linux-gnu-g++ aarch64-linux-gnu-g++-14 aarch64-linux-gnu-g++-13
                                      aarch64-linux-gnu-g++-12 REQUIRED)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64;-L;/usr/aarch64-linux-gnu)

# Programs of this machine, libraries of the other one.
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
