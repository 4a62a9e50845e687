//! The lab itself: it leaves nothing behind, and its witness sees what is wrong.

use std::{
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use lab::{
    Lab, Nics, Options, Router,
    addresses::ALLOWED_NAME,
    client, link,
    paths::{self, namespace_name},
    wait,
    witness::Witness,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::common::{ECHO, LIMIT, check, helper};

/// The time that the lab binary may take to come up or to go away.
const BINARY_LIMIT: Duration = Duration::from_secs(60);

/// The lab binary with a unique id, and nftables: this is not about the router.
struct Binary {
    id: String,
}

impl Binary {
    fn new() -> Self {
        Self { id: paths::unique_id() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
        command.args(["--router", "nftables", "--id", &self.id]).args(args).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the lab binary runs")
    }

    /// Starts it and waits until its hosts have processes.
    fn start(&self) -> Child {
        let child = self.command(&[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.expect("the lab binary runs");
        check(wait::until("the lab to have a firewall", BINARY_LIMIT, || {
            let directory = paths::directory(&self.id);
            anyhow::ensure!(directory.join("logs/firewall.log").exists(), "{} has none", directory.display());
            Ok(())
        }));
        child
    }

    /// Returns the files and namespaces of the lab.
    fn remains(&self) -> Vec<PathBuf> {
        let hosts = lab::HOSTS.map(|host| PathBuf::from("/run/netns").join(namespace_name(&self.id, host)));
        hosts.into_iter().chain([paths::directory(&self.id)]).filter(|path| path.exists()).collect()
    }

    /// Nothing of it is left.
    #[track_caller]
    fn assert_gone(&self) {
        assert_eq!(self.remains(), Vec::<PathBuf>::new());
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("the mounts are readable");
        assert!(!mounts.contains(&format!("/{}/", self.id)), "{mounts}");
    }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).expect("the lab can be signalled");
}

#[test]
fn an_interrupted_lab_removes_itself() {
    for interrupt in [Signal::SIGINT, Signal::SIGTERM] {
        let binary = Binary::new();
        let mut child = binary.start();
        signal(&child, interrupt);
        let status = child.wait().expect("the lab can be waited for");
        assert_eq!(status.code(), Some(128 + interrupt as i32));
        binary.assert_gone();
    }
}

#[test]
fn a_killed_lab_is_removed_by_the_next_one() {
    let binary = Binary::new();
    let mut child = binary.start();
    signal(&child, Signal::SIGKILL);
    child.wait().expect("the lab can be waited for");
    assert!(!binary.remains().is_empty(), "nothing to remove: this test tests nothing");
    // Any lab does, with any id.
    let next = check(Lab::up(Options {
        start_router: false,
        ..Options::new(Nics::One, Router::Nftables, helper())
    }));
    binary.assert_gone();
    drop(next);
}

#[test]
fn two_labs_do_not_share_an_id() {
    let binary = Binary::new();
    let mut child = binary.start();
    let second = binary.run(&[]);
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("process {}", child.id())), "it does not say who has the lab: {said}");
    assert_eq!(binary.run(&["--down"]).status.code(), Some(1), "a running lab was taken down");
    signal(&child, Signal::SIGINT);
    child.wait().expect("the lab can be waited for");
    binary.assert_gone();
}

#[test]
fn a_kept_lab_stays_until_it_is_taken_down() {
    let binary = Binary::new();
    let kept = binary.run(&["--keep"]);
    let said = String::from_utf8_lossy(&kept.stdout).into_owned();
    assert!(kept.status.success(), "{said}{}", String::from_utf8_lossy(&kept.stderr));
    assert!(!said.contains("FAILED"), "{said}");

    let url = format!("https://{ALLOWED_NAME}/");
    let entered = binary.run(&["--exec", "serverless", "curl", "--silent", "--show-error", &url]);
    let (page, error) = (String::from_utf8_lossy(&entered.stdout), String::from_utf8_lossy(&entered.stderr));
    assert_eq!(page, lab::front_page(ALLOWED_NAME), "{error}");
    assert_eq!(binary.run(&["--exec", "router", "sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(binary.run(&["--exec", "nobody", "true"]).status.code(), Some(1));
    // Other labs come and go.
    drop(check(Lab::up(Options {
        start_router: false,
        ..Options::new(Nics::One, Router::Nftables, helper())
    })));
    assert_eq!(binary.run(&["--exec", "pls", "true"]).status.code(), Some(0));

    assert!(binary.run(&["--down"]).status.success());
    binary.assert_gone();
    assert!(binary.run(&["--down"]).status.success(), "there is nothing to take down, which is fine");
}

/// A lab that is only looked at.
fn watched() -> Lab {
    check(Lab::up(Options::new(Nics::One, Router::Nftables, helper())))
}

#[test]
fn the_witness_sees_bad_checksums() {
    let lab = watched();
    // From now on checksums are left to a NIC that does not exist, on every wire up to the
    // router's.
    check(link::offloads(&lab.hosts.serverless, "eth0", true));
    check(link::offloads(&lab.hosts.pls, "vnet", true));
    let witness = check(Witness::start(&lab));
    check(check(client::Udp::open(&lab.hosts.serverless, ECHO)).echo(b"hello", LIMIT));
    let error = witness.finish().expect_err("the witness is content");
    assert!(error.to_string().contains("bad checksums"), "{error:#}");
}

#[test]
fn the_witness_sees_leaks() {
    let lab = watched();
    check(lab.hosts.router.run("nft", &["flush", "chain", "ip", "router", "from_router"]));
    let witness = check(Witness::start(&lab));
    check(check(client::Udp::open(&lab.hosts.serverless, ECHO)).send(b"hello"));
    // The packet goes out with its original source, and gets no answer.
    check(wait::until("the datagram to reach the firewall", LIMIT, || {
        // Longer than the header of the file.
        let captured = std::fs::metadata(lab.state().path("tmp/firewall.pcap"))?.len();
        anyhow::ensure!(captured > 24, "nothing is captured");
        Ok(())
    }));
    let error = witness.finish().expect_err("the witness is content");
    assert!(error.to_string().contains("untranslated addresses"), "{error:#}");
}
