//! The commands of the guides that need a router: each page's blocks for a lab run one after the
//! other, on the router of a new lab with traffic, and the commands within sentences on another.
//! What needs no router, whether somebody runs each command, and whether the program accepts all
//! arguments, is tested by `router-user/tests/guides.rs`.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, bail};
use harness::guides::{Block, Outcome, Page, Runner, accounts, pages};
use lab::{Lab, Nics, Options, Router, client::Tcp, paths};
use nix::sys::signal::Signal;

use crate::common::{ECHO, LIMIT, check, helper, only_pls_router, router};

/// A router whose keyboard the reader of a guide sits at.
struct Console {
    lab: Lab,
    /// The directory in which commands run.
    directory: PathBuf,
}

impl Console {
    fn open(binary: &Path) -> Result<Self> {
        let options = Options::new(Nics::One, Router::PlsRouter(binary.to_owned()), helper());
        let lab = Lab::up(options)?;
        let directory = lab.state().path("console");
        fs::create_dir(&directory).context("console")?;
        symlink(binary, directory.join("pls-router")).context("pls-router")?;
        Ok(Self { lab, directory })
    }

    /// Runs a command line. There is no systemd in a lab: what it would do is done here.
    fn run(&mut self, line: &str) -> Result<Output> {
        match line.split('#').next().unwrap_or_default().trim().strip_prefix("systemctl ") {
            Some("stop pls-router") => {
                self.lab.stop_router(Signal::SIGTERM)?;
                self.shell("true")
            }
            Some("start pls-router") => {
                self.lab.start_router()?;
                self.shell("true")
            }
            Some("restart pls-router") => {
                self.lab.stop_router(Signal::SIGTERM)?;
                self.lab.start_router()?;
                self.shell("true")
            }
            Some(other) => bail!("systemctl {other}: a lab cannot do that"),
            None => self.shell(line),
        }
    }

    fn shell(&self, line: &str) -> Result<Output> {
        let mut shell: Command = self.lab.hosts.router.command("sh")?;
        shell.args(["-c", &format!("exec 2>&1\ncd '{}'\n{line}", self.directory.display())]);
        shell.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.directory.display()));
        shell.env("PLS_ROUTER_CONFIG", self.lab.state().path("config.toml"));
        shell.stdin(Stdio::null()).output().context("cannot run a shell")
    }
}

fn guides() -> Vec<Page> {
    pages(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .unwrap_or_else(|wrong| panic!("{}", wrong.join("\n")))
}

#[test]
fn commands_of_the_guides_do_what_they_say() {
    only_pls_router();
    let Router::PlsRouter(binary) = router() else { return };
    let pages = guides();
    let mut ran = 0;
    for page in &pages {
        let blocks = page.blocks.iter().filter_map(|block| match block {
            Block::Commands { runner: Runner::Lab, commands } => Some(commands),
            Block::Commands { .. } | Block::File { .. } => None,
        });
        let blocks: Vec<_> = blocks.collect();
        if blocks.is_empty() {
            continue;
        }
        let mut console = check(Console::open(&binary));
        check(console.lab.wait_in_service(LIMIT));
        let mut tcp = check(Tcp::connect(&console.lab.hosts.serverless, ECHO, LIMIT));
        check(tcp.echo(b"before", LIMIT));
        for commands in blocks {
            for step in commands {
                let followed = step.follow(&page.path, |line| check(console.run(line)).into());
                followed.unwrap_or_else(|wrong| panic!("{wrong}"));
                ran += 1;
            }
        }
        // Nothing that a guide says costs a session.
        check(tcp.echo(b"after", LIMIT));
    }
    assert!(ran > 20, "only {ran} commands");
}

/// The router goes on: what a command takes out of service is put back.
#[test]
fn commands_within_sentences_succeed() {
    only_pls_router();
    let Router::PlsRouter(binary) = router() else { return };
    let steps = accounts::inline(&guides(), Runner::Lab);
    let mut console = check(Console::open(&binary));
    check(console.lab.wait_in_service(LIMIT));
    for (page, step) in &steps {
        let followed = step.follow(page, |line| {
            // What goes on until it is interrupted: 124 says that `timeout` has done it.
            let ends = !line.contains("--watch");
            let line = if ends { line.to_owned() } else { format!("timeout 3 {line}; [ $? = 124 ]") };
            check(console.run(&line)).into()
        });
        followed.unwrap_or_else(|wrong| panic!("{wrong}"));
        if step.command.starts_with("pls-router drain") {
            check(console.run("pls-router undrain"));
        }
    }
    assert!(steps.len() > 15, "only {} commands", steps.len());
    check(console.lab.wait_in_service(LIMIT));
}

/// A lab as `cargo xtask lab` makes it, whose router is looked into.
#[test]
fn the_lab_that_the_readme_names_can_be_entered() {
    only_pls_router();
    let Router::PlsRouter(binary) = router() else { return };
    let id = paths::unique_id();
    let lab = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
        command.args(["--id", &id]).args(args).env("PLS_ROUTER_BIN", &binary).stdin(Stdio::null());
        Outcome::from(command.output().expect("the lab binary runs"))
    };
    let kept = lab(&["--keep"]);
    let counters = lab(&["--exec", "router", "pls-router", "counters"]);
    assert_eq!(lab(&["--down"]).code, Some(0));
    assert!(kept.code == Some(0) && kept.said.contains("scenes passed"), "{}", kept.said);
    assert!(counters.code == Some(0) && counters.said.contains("forwarded"), "{}", counters.said);
}

/// The shortest part of `cargo xtask bench`.
#[test]
fn the_bench_measures() {
    only_pls_router();
    let Router::PlsRouter(binary) = router() else { return };
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"));
    bench.args(["--quick", "--only", "programs"]).env("PLS_ROUTER_BIN", &binary).stdin(Stdio::null());
    let measured = Outcome::from(bench.output().expect("the bench binary runs"));
    assert!(
        measured.code == Some(0) && measured.said.contains("the program forward alone"),
        "{}",
        measured.said
    );
}
