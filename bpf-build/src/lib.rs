//! Finds the BPF toolchain and compiles router-ebpf with it.
