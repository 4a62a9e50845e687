//! Compiles the programs that the lab itself needs on its wires.

fn main() -> std::process::ExitCode {
    bpf_build::build_script("tests/labtools", "labtools", &[])
}
