//! Writes the manual pages and the shell completions of `pls-router` into a directory, for its
//! package: `cli-documents DIRECTORY`.
//!
//! They are made from the definition of the command line itself, by a program of its own, so that
//! the router does not carry what makes them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap_complete::Shell;
use clap_mangen::Man;

/// The section of the manual for system administration.
const SECTION: &str = "8";

/// The shells, each with the file that its completion has to be in.
const COMPLETIONS: [(Shell, &str); 3] =
    [(Shell::Bash, "pls-router.bash"), (Shell::Zsh, "_pls-router"), (Shell::Fish, "pls-router.fish")];

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1) else {
        eprintln!("usage: cli-documents DIRECTORY");
        return ExitCode::from(2);
    };
    match write(&PathBuf::from(directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes all files.
fn write(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for (name, page) in pages()? {
        put(&directory.join(name), &page)?;
    }
    for (shell, name) in COMPLETIONS {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut router_user::cli::definition(), "pls-router", &mut script);
        put(&directory.join(name), &script)?;
    }
    Ok(())
}

/// Returns the manual page of the program and one for each of its commands and theirs, by file
/// name.
fn pages() -> Result<Vec<(String, Vec<u8>)>> {
    let mut program = router_user::cli::definition().disable_help_subcommand(true);
    // Hands the global options and the full names on to the commands.
    program.build();
    let mut pages = Vec::new();
    let mut left = vec![program];
    while let Some(command) = left.pop() {
        left.extend(command.get_subcommands().cloned());
        pages.push(page(command)?);
    }
    Ok(pages)
}

fn page(command: clap::Command) -> Result<(String, Vec<u8>)> {
    let source = format!("pls-router {}", router_user::VERSION);
    let man = Man::new(command).section(SECTION).source(source).manual("pls-router");
    let mut text = Vec::new();
    man.render(&mut text).context("cannot render a manual page")?;
    Ok((man.get_filename(), text))
}

fn put(path: &Path, contents: &[u8]) -> Result<()> {
    fs::write(path, contents).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page_with_its_options() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path()).unwrap();
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        assert!(read("pls-router.8").contains("pls\\-router\\-drain(8)"));
        let drain = read("pls-router-drain.8");
        assert!(drain.contains("\\-\\-wait") && drain.contains("\\-\\-config"), "{drain}");
        let import = read("pls-router-import-iptables-save.8");
        assert!(import.contains("\\-\\-sources"), "{import}");
        assert!(!directory.path().join("pls-router-help.8").exists());
        assert!(!directory.path().join("pls-router-import-help.8").exists());
    }

    #[test]
    fn each_shell_completes_commands() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path()).unwrap();
        for (_, name) in COMPLETIONS {
            let script = fs::read_to_string(directory.path().join(name)).unwrap();
            assert!(script.contains("undrain"), "{name}");
        }
    }
}
