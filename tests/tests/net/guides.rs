//! The commands of the guides in `docs` that need a router: each page's blocks for a lab run one
//! after the other, on the router of a new lab with traffic. What needs no router, and whether the
//! program accepts all arguments, is tested by `router-user/tests/guides.rs`.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, bail};
use harness::guides::{Block, Page, Runner, Step, pages};
use lab::{Lab, Nics, Options, Router, client::Tcp};
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

fn follow(page: &Page, commands: &[Step], console: &mut Console) {
    for step in commands {
        let at = format!("{}:{}: {}", page.path.display(), step.line, step.command);
        let output = check(console.run(&step.command).with_context(|| at.clone()));
        let said = String::from_utf8_lossy(&output.stdout);
        println!("{at}\n{said}");
        assert_eq!(output.status.code(), Some(step.code), "{at}\n{said}");
        assert_eq!(step.missing(&said), None, "{at}\n{said}");
    }
}

#[test]
fn commands_of_the_guides_do_what_they_say() {
    only_pls_router();
    let Router::PlsRouter(binary) = router() else { return };
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let pages = pages(&docs).unwrap_or_else(|wrong| panic!("{}", wrong.join("\n")));
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
            follow(page, commands, &mut console);
            ran += commands.len();
        }
        // Nothing that a guide says costs a session.
        check(tcp.echo(b"after", LIMIT));
    }
    assert!(ran > 20, "only {ran} commands");
}
