//! The kernel's settings that the router depends on, changed by others under the running daemon.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lab::{
    Lab, Nics, Options,
    client::{Tcp, Udp},
    link, wait,
};
use nix::sys::signal::Signal;
use router_user::model::Repairs;

use crate::{
    common::{ECHO, LIMIT, check, helper, only_pls_router, router},
    lifecycle::{attached, pins},
};

/// The sysctl's file, and its name as a repair.
const LOOPBACK_FORWARDING: &str = "net/ipv4/conf/lo/forwarding";
const ROUTE_LOOKUPS: &str = "net.ipv4.conf.lo.forwarding";

fn lab(nics: Nics) -> Lab {
    only_pls_router();
    check(Lab::up(Options::new(nics, router(), helper())))
}

/// Returns the state of one repair in `status`.
fn repairs(lab: &Lab, name: &str) -> Result<Repairs> {
    let status = lab.pls_router_status()?;
    let found = status.repairs.iter().find(|repairs| repairs.name == name).cloned();
    found.with_context(|| format!("nothing about {name} in {:#?}", status.repairs))
}

/// Waits until something has been set again at least so often, and is good.
#[track_caller]
fn wait_for_repair(lab: &Lab, name: &str, count: u64) -> Repairs {
    check(wait::until("a repair", LIMIT, || {
        let repairs = repairs(lab, name)?;
        ensure!(repairs.count >= count && repairs.problem.is_empty(), "{repairs:?}");
        Ok(repairs)
    }))
}

/// Opens new sessions until one is answered.
#[track_caller]
fn a_new_session_opens_within(lab: &Lab, limit: Duration, what: &str) {
    const PATIENCE: Duration = Duration::from_millis(100);
    check(wait::until(what, limit, || Udp::open(&lab.hosts.serverless, ECHO)?.echo(b"new", PATIENCE)));
}

/// `check` advises the first of these; the kernel then resets `forwarding` of every interface, the
/// loopback's too.
#[test]
fn disabled_forwarding_is_enabled_again_at_once() {
    let mut lab = lab(Nics::One);
    let mut known = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    let story = [
        ("net/ipv4/ip_forward", "1", 0),
        ("net/ipv4/ip_forward", "0", 1),
        ("net/ipv4/conf/all/forwarding", "1", 1),
        ("net/ipv4/conf/all/forwarding", "0", 2),
        (LOOPBACK_FORWARDING, "0", 3),
    ];
    for (setting, value, count) in story {
        check(lab.hosts.router.sysctl(setting, value));
        let what = format!("a session after {setting}={value}");
        a_new_session_opens_within(&lab, Duration::from_secs(1), &what);
        check(known.echo(b"known", LIMIT));
        let repairs = wait_for_repair(&lab, ROUTE_LOOKUPS, count);
        assert_eq!((repairs.count, repairs.what.as_str()), (count, "sysctl"), "{what}");
    }
    let log = check(lab.router()).output();
    let said = log.matches("net.ipv4.conf.lo.forwarding was set to 0; set to 1 again").count();
    assert_eq!(said, 3, "{log}");
    let metrics = check(lab.hosts.router.run("curl", &["-s", "http://127.0.0.1:9090/metrics"]));
    let metric = format!("pls_router_repairs_total{{what=\"sysctl\",name=\"{ROUTE_LOOKUPS}\"}} 3");
    assert!(metrics.contains(&metric), "{metrics}");
    assert!(check(lab.pls_router_status()).healthy);
    // And the machine is left as it was.
    assert!(check(lab.stop_router(Signal::SIGTERM)).success());
    check(lab.detach_router());
    let left = check(lab.hosts.router.run("cat", &[&format!("/proc/sys/{LOOPBACK_FORWARDING}")]));
    assert_eq!(left.trim(), "0");
}

/// Repairs slow down against a process that keeps changing the setting: `status` reports it, and
/// the router's value is set again only now and then.
#[test]
fn repeated_changes_of_a_setting_are_reported_and_repairs_slow_down() {
    const FIGHT: Duration = Duration::from_secs(4);
    let mut lab = lab(Nics::One);
    let is_over = AtomicBool::new(false);
    let during = thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                check(lab.hosts.router.sysctl(LOOPBACK_FORWARDING, "0"));
                thread::sleep(Duration::from_millis(2));
            }
        });
        let start = Instant::now();
        let during = wait::until("a condition", FIGHT, || {
            let status = lab.pls_router_status()?;
            let told = status.degraded.iter().any(|text| text.contains("is changed again and again"));
            ensure!(told, "{status:#?}");
            Ok(())
        });
        thread::sleep(FIGHT.saturating_sub(start.elapsed()));
        is_over.store(true, Ordering::Relaxed);
        during
    });
    check(during);
    a_new_session_opens_within(&lab, Duration::from_secs(6), "a session after the fight");
    // 0, 250 ms, 750 ms, 1750 ms, 3750 ms, three of them at once.
    let repairs = check(repairs(&lab, ROUTE_LOOKUPS));
    assert!((4..=9).contains(&repairs.count), "{repairs:?}");
    let log = check(lab.router()).output();
    assert!(log.matches("set to 1 again").count() <= 3, "{log}");
    assert_eq!(log.matches("degraded: net.ipv4.conf.lo.forwarding is changed").count(), 1, "{log}");
}

/// Returns the pins of links, of any layout.
fn link_pins(lab: &Lab) -> Vec<PathBuf> {
    let layouts = pins(lab).into_iter().map(|layout| PathBuf::from(layout).join("links"));
    let entries = layouts.flat_map(|links| fs::read_dir(links).into_iter().flatten().flatten());
    entries.map(|entry| entry.path()).collect()
}

#[test]
fn a_detached_program_is_attached_again() {
    let mut lab = lab(Nics::Two);
    let mut known = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(known.echo(b"before", LIMIT));
    for (round, device) in (1..).zip(["eth0", "eth1"]) {
        let pin = link_pins(&lab).into_iter().find(|pin| pin.ends_with(format!("native-{device}")));
        check(link::detach(&pin.expect("a pinned link")));
        assert_eq!(attached(&lab, device), None, "nothing to put back: this test tests nothing");
        wait_for_repair(&lab, device, 1);
        assert!(attached(&lab, device).is_some());
        a_new_session_opens_within(&lab, Duration::from_secs(1), device);
        check(known.echo(b"after", LIMIT));
        let log = check(lab.router()).output();
        assert_eq!(
            log.matches("the program was taken off; the program is attached again").count(),
            round,
            "{log}"
        );
    }
    let programs: Vec<_> = ["eth0", "eth1"].map(|device| format!("native-{device}")).into();
    let pinned = |program: &String| link_pins(&lab).iter().filter(|pin| pin.ends_with(program)).count();
    assert!(programs.iter().all(|program| pinned(program) == 1), "{:?}", link_pins(&lab));
    check(lab.wait_in_service(LIMIT));
}

/// All pins below /sys/fs/bpf are removed. No packet is lost, and a daemon that starts after a
/// crash finds everything.
#[test]
fn removed_pins_are_made_again() {
    let mut lab = lab(Nics::One);
    let mut known = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(known.echo(b"before", LIMIT));
    let program = attached(&lab, "eth0");
    let directory = PathBuf::from(pins(&lab).first().expect("a layout"));
    let listed = || {
        let mut names: Vec<_> =
            fs::read_dir(&directory).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
        names.sort();
        names
    };
    let before = listed();
    // The attached program's own pin alone is made again, too.
    let root = directory.join("root-eth0");
    check(fs::remove_file(&root).context("the program's pin"));
    wait_for_repair(&lab, &directory.display().to_string(), 1);
    assert!(root.exists(), "{:?}", listed());
    check(fs::remove_dir_all(lab.state().path("bpf/pls-router")).context("the pins"));
    check(known.echo(b"meanwhile", LIMIT));
    wait_for_repair(&lab, &directory.display().to_string(), 2);
    assert_eq!(listed(), before);
    let program_pins = link_pins(&lab).iter().filter(|pin| pin.ends_with("native-eth0")).count();
    assert_eq!(program_pins, 1, "{:?}", link_pins(&lab));
    assert_eq!(attached(&lab, "eth0"), program, "the program was taken off meanwhile");
    // No other user can access the new ones.
    let second = lab
        .configuration(&lab.options.rules)
        .replace("api.sock", "second.sock")
        .replace("8082", "8083")
        .replace("9090", "9091");
    check(lab.state().write("second.toml", second));
    let output = check(lab::command::output(&mut check(
        lab.pls_router_command(&["run"], &lab.state().path("second.toml")),
    )));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("another pls-router works with"), "{said}");

    check(lab.stop_router(Signal::SIGKILL));
    check(known.echo(b"without a daemon", LIMIT));
    check(lab.start_router());
    check(known.echo(b"after", LIMIT));
    assert_eq!(attached(&lab, "eth0"), program);
    assert!(check(lab.router()).output().contains("found the data plane of an earlier daemon"));
    // A program that is taken off on purpose stays off.
    check(lab.pls_router(&["detach", "--force"]));
    let (code, body) = check(lab.health());
    assert!(code == 503 && body.contains("detach --force"), "{code} {body}");
    thread::sleep(Duration::from_millis(2500));
    assert_eq!((attached(&lab, "eth0"), pins(&lab)), (None, Vec::new()));
}
