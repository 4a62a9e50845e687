//! The data plane that a daemon of another version has left: pinned under another layout.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use anyhow::{Context as _, ensure};
use lab::{
    Lab, Nics, Options,
    client::{Tcp, Udp},
    wait,
};
use nix::sys::signal::Signal;

use crate::{
    common::{ECHO, LIMIT, check, helper, only_pls_router, router},
    lifecycle::{attached, pins, refuses},
};

/// A layout that no version has any more.
const OTHER: &str = "v0";

/// A lab whose router has died, and has left its data plane under another layout; the data plane's
/// directory.
fn lab_with_predecessor(nics: Nics) -> (Lab, PathBuf) {
    only_pls_router();
    let mut lab = check(Lab::up(Options::new(nics, router(), helper())));
    check(check(Udp::open(&lab.hosts.serverless, ECHO)).echo(b"warm", LIMIT));
    check(lab.stop_router(Signal::SIGKILL));
    let own = PathBuf::from(pins(&lab).first().expect("a layout"));
    let other = own.with_file_name(OTHER);
    check(fs::rename(&own, &other).context("the pins"));
    (lab, other)
}

fn forwarding(lab: &Lab) -> String {
    let text = check(lab.hosts.router.run("cat", &["/proc/sys/net/ipv4/conf/lo/forwarding"]));
    text.trim().to_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_data_plane_of_another_version_is_taken_over() {
    let (mut lab, other) = lab_with_predecessor(Nics::Two);
    // It goes on without a daemon.
    let direct = check(Udp::open(&lab.hosts.serverless, ECHO));
    let before = ["eth0", "eth1"].map(|device| attached(&lab, device).expect("its program"));

    let output = check(lab.pls_router(&["check"]));
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains(&format!("is at {}, on eth", other.display())), "{text}");

    check(lab.start_router());
    check(lab.wait_in_service(LIMIT));
    // The interfaces have not noticed.
    let after = ["eth0", "eth1"].map(|device| attached(&lab, device).expect("our program"));
    assert_eq!(before, after);
    check(wait::until("the old pins to go", LIMIT, || {
        ensure!(!other.exists(), "{} is there", other.display());
        Ok(())
    }));
    let log = check(lab.router()).output();
    assert!(log.contains("found the data plane of another version"), "{log}");
    assert!(log.contains("its sessions are lost, because this version cannot read layout 0"), "{log}");
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"new", LIMIT));
    check(direct.echo(b"again", LIMIT));
    // Its attachments are pinned as ours, and it is they that a crash leaves.
    check(lab.stop_router(Signal::SIGKILL));
    check(direct.echo(b"without a daemon", LIMIT));
    check(lab.start_router());
    assert_eq!(["eth0", "eth1"].map(|device| attached(&lab, device).expect("our program")), after);

    assert!(check(lab.stop_router(Signal::SIGTERM)).success());
    check(lab.detach_router());
    assert_eq!((attached(&lab, "eth0"), attached(&lab, "eth1"), pins(&lab)), (None, None, Vec::new()));
    assert_eq!(forwarding(&lab), "0");
}

#[test]
fn a_failed_start_leaves_the_data_plane_of_another_version_as_it_was() {
    let (lab, other) = lab_with_predecessor(Nics::Two);
    let before = attached(&lab, "eth0").expect("its program");
    // veth_xdp_set, drivers/net/veth.c: "Peer MTU is too large to set XDP". The router cannot see
    // that before it tries.
    check(fs::remove_file(other.join("links/native-eth1")).context("a link"));
    check(lab.hosts.vnet.ip("link set router1 mtu 9000"));
    refuses(&lab, "an interface that takes no program", &["eth1: cannot attach the program in native mode"]);
    assert_eq!(attached(&lab, "eth0").expect("its program"), before);
    assert_eq!(pins(&lab), [other.display().to_string()]);
    assert!(other.join("links/native-eth0").exists());
    assert_eq!(forwarding(&lab), "1", "it still asks for routes");
}

#[test]
fn a_living_daemon_of_another_version_is_left_alone() {
    let (mut lab, other) = lab_with_predecessor(Nics::One);
    let before = attached(&lab, "eth0").expect("its program");
    let lock = |directory: &Path| {
        let file = fs::File::open(directory)?;
        file.lock()?;
        Ok::<_, std::io::Error>(file)
    };
    let alive = check(lock(&other).context("the lock"));
    refuses(&lab, "a living daemon", &["another pls-router works with", "stop it first"]);
    assert_eq!(attached(&lab, "eth0").expect("its program"), before);
    assert_eq!(pins(&lab), [other.display().to_string()]);
    drop(alive);
    check(lab.start_router());
}

#[test]
fn detach_removes_the_data_plane_of_any_version() {
    let (lab, other) = lab_with_predecessor(Nics::Two);
    let text = said(&check(lab.pls_router(&["detach"])));
    assert!(text.contains("detached from") && text.contains("eth0") && text.contains("eth1"), "{text}");
    assert!(text.contains(&other.display().to_string()), "{text}");
    assert_eq!((attached(&lab, "eth0"), attached(&lab, "eth1"), pins(&lab)), (None, None, Vec::new()));
    assert_eq!(forwarding(&lab), "0");
    let text = said(&check(lab.pls_router(&["detach"])));
    assert!(text.contains("no program was attached, and no pins are left"), "{text}");
}
