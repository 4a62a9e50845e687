//! The commands of the guides: each has somebody who runs it, the program accepts its arguments,
//! and those that need no router run here. The others run in a lab (`tests/tests/net/guides.rs`),
//! where there is something to deploy to (`tests/tests/deploy.rs`), and on a machine with systemd
//! (`tests/tests/machine/guides.rs`).

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use harness::guides::{Block, Page, Runner, accounts, calls, pages};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn guides() -> Vec<Page> {
    pages(&root()).unwrap_or_else(|wrong| panic!("{}", wrong.join("\n")))
}

#[test]
fn every_command_of_the_guides_is_run_or_for_azure_only() {
    let pages = guides();
    let problems = accounts::problems(&pages, &root());
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    let inline: usize = pages.iter().map(|page| page.inline.len()).sum();
    assert!(inline > 100, "only {inline} commands within sentences");
    for (runner, least) in [(Runner::Lab, 15), (Runner::Deploy, 2), (Runner::Machine, 10)] {
        let steps = accounts::inline(&pages, runner);
        println!("{runner:?} runs {}", steps.len());
        for (page, step) in &steps {
            println!("  {}:{}: {}", page.display(), step.line, step.command);
        }
        assert!(steps.len() >= least, "{runner:?} runs only {}", steps.len());
    }
}

/// Returns what the program says of arguments that it does not accept. `--help` at their end has it
/// read them and do nothing.
fn refusal(arguments: &[String]) -> Option<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pls-router"));
    let output = command.args(arguments).arg("--help").env_clear().stdin(Stdio::null()).output().unwrap();
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn the_program_accepts_every_command_line_of_the_guides() {
    let mut wrong = Vec::new();
    let mut looked_at = 0;
    for page in guides() {
        let in_blocks = page.blocks.iter().flat_map(|block| match block {
            Block::Commands { commands, .. } => commands.as_slice(),
            Block::File { .. } => &[],
        });
        let in_blocks = in_blocks.map(|step| (step.line, step.command.clone()));
        let inline = page.inline.iter().map(|inline| (inline.line, inline.command.clone()));
        for (line, command) in in_blocks.chain(inline) {
            for arguments in calls(&command) {
                looked_at += 1;
                if let Some(refusal) = refusal(&arguments) {
                    wrong.push(format!("{}:{line}: {command}\n{refusal}", page.path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(looked_at > 60, "only {looked_at} command lines");
}

#[test]
fn arguments_that_do_not_exist_are_found() {
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    for line in ["status --jsno", "flows --limit many", "stauts", "drain --wait soon"] {
        assert!(refusal(&words(line)).is_some(), "{line}");
    }
    assert_eq!(refusal(&words("flows --limit 5 -o json")), None);
}

#[test]
fn commands_that_need_no_router_do_what_the_guides_say() {
    let mut ran = 0;
    for page in guides() {
        let place = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_pls-router"), place.path().join("pls-router"))
            .unwrap();
        let path = format!("{}:/usr/bin:/bin", place.path().display());
        for block in &page.blocks {
            match block {
                Block::File { name, text } => std::fs::write(place.path().join(name), text).unwrap(),
                Block::Commands { runner: Runner::Run, commands } => {
                    for step in commands {
                        let mut shell = Command::new("sh");
                        shell.args(["-c", &format!("exec 2>&1\n{}", step.command)]).current_dir(place.path());
                        shell.env_clear().env("PATH", &path).stdin(Stdio::null());
                        step.follow(&page.path, |_| shell.output().unwrap().into())
                            .unwrap_or_else(|wrong| panic!("{wrong}"));
                        ran += 1;
                    }
                }
                Block::Commands { .. } => {}
            }
        }
    }
    assert!(ran > 4, "only {ran} commands");
}
