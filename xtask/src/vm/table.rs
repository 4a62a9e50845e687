//! The table of kernels: what loads, attaches and passes under each.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};

use super::kernel::{self, Kernel};
use super::{Options, Program, QUICK_TESTS, Tools, build, image, quoted};
use crate::packages::apt::Source;
use crate::{system, toolchain, workspace};

/// The columns, as the script of the machine names its answers.
const COLUMNS: &[(&str, &str)] = &[
    ("check", "`pls-router check`"),
    ("veth", "Native XDP on veth"),
    ("virtio", "Native XDP on virtio_net"),
    ("packets", "Random packets"),
];

/// The script that the machine runs.
const SCRIPT: &str = concat!(include_str!("configuration.sh"), include_str!("table.sh"));

/// The beginning of a line that has an answer.
const ANSWER: &str = "vm: answer ";

/// Boots each kernel, and prints the table.
pub(super) fn print(options: &Options) -> Result<ExitCode> {
    let tools = Tools::ready()?;
    toolchain::bpf()?;
    let mut programs = build(QUICK_TESTS)?;
    let mut daemon = workspace::cargo("build");
    system::run(daemon.args(["--package", "router-user", "--bin", "pls-router"]))?;
    programs.push(Program { name: "pls-router", binary: workspace::target_dir().join("debug/pls-router") });
    let root = workspace::root();
    let root = quoted(root.to_str().context("the path of the repository is no text")?);
    let script = SCRIPT.replace("@ROOT@", &root).replace("@PACKETS@", &options.packets.to_string());
    let source = kernel::all_releases()?;
    let mut table = head();
    let mut good = true;
    for kernel in kernel::TABLE {
        eprintln!("\n== Linux {kernel}");
        match row(*kernel, &tools, &source, &programs, &script) {
            Ok(row) => table += &row,
            Err(error) => {
                eprintln!("error: Linux {kernel}: {error:#}");
                good = false;
            }
        }
    }
    println!("\n{table}");
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn head() -> String {
    let titles: Vec<_> = COLUMNS.iter().map(|(_, title)| *title).collect();
    format!("| Linux | {} |\n|---|{}\n", titles.join(" | "), "---|".repeat(titles.len()))
}

fn row(kernel: Kernel, tools: &Tools, source: &Source, programs: &[Program], script: &str) -> Result<String> {
    let (package, files) = kernel.files_of_any_release(tools, source)?;
    let image: PathBuf = image::build(&files, tools, programs, script)?;
    let lines = super::boot(tools, &files.image, &image)?.lines;
    let mut row = format!("| {} |", release(&package));
    for (name, _) in COLUMNS {
        let answer = lines.iter().find_map(|line| line.strip_prefix(ANSWER)?.strip_prefix(name));
        _ = write!(row, " {} |", answer.unwrap_or("-").trim());
    }
    ensure!(row.matches(" - |").count() < COLUMNS.len(), "the machine has answered nothing");
    Ok(row + "\n")
}

/// The release in the name of a package: `linux-image-6.12.117+deb13-cloud-amd64`.
fn release(package: &str) -> &str {
    let name = package.trim_start_matches("linux-image-");
    name.split(['+']).next().unwrap_or(name).split("-cloud").next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_of_a_release() {
        assert_eq!(release("linux-image-6.12.117+deb13-cloud-amd64"), "6.12.117");
        assert_eq!(release("linux-image-5.10.0-46-cloud-amd64"), "5.10.0-46");
    }

    #[test]
    fn a_table_has_a_head() {
        assert!(head().starts_with("| Linux | `pls-router check` |"), "{}", head());
        assert_eq!(head().lines().count(), 2);
    }
}
