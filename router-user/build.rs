//! Compiles the XDP programs into `$OUT_DIR/router`, for the daemon to carry inside it.

fn main() -> std::process::ExitCode {
    bpf_build::build_script("router-ebpf", "router", &["other-layout"])
}
