//! `pls-router support-bundle` of a router with traffic, and of one whose daemon is dead.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lab::{
    Lab, Namespace, Nics, Options,
    addresses::{ENDPOINT, PLATFORM, PLS_NAT, ROUTER, TOOLS},
    client::Tcp,
};
use nix::sys::signal::Signal;

use crate::common::{ECHO, LIMIT, check, helper, only_pls_router, router};

/// Makes a bundle. Returns all that is in it, in one text.
fn bundle(lab: &Lab, name: &str, arguments: &[&str]) -> Result<String> {
    let file = lab.state().path(name);
    let file = file.to_str().context("a path of text")?;
    let output = lab.pls_router(&[&["support-bundle", "--file", file], arguments].concat())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    println!("{}", String::from_utf8_lossy(&output.stdout));
    let output = Command::new("tar").args(["-xOzf", file]).output().context("tar")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).context("a text")
}

/// The addresses that the router's own network has: IPv4, IPv6 and MAC.
fn addresses(router: &Namespace) -> Result<Vec<String>> {
    let text = router.run("ip", &["-o", "address"])? + &router.run("ip", &["-o", "link"])?;
    let mut words = text.split_whitespace().peekable();
    let mut found = Vec::new();
    while let Some(word) = words.next() {
        if ["inet", "inet6", "link/ether"].contains(&word)
            && let Some(address) = words.peek().and_then(|next| next.split('/').next())
        {
            found.push(address.to_owned());
        }
    }
    found.retain(|address| address != "127.0.0.1" && address != "::1");
    ensure!(found.len() > 1, "{text}");
    Ok(found)
}

#[test]
fn a_bundle_tells_all_of_a_router_or_all_but_addresses() {
    only_pls_router();
    let mut lab = check(Lab::up(Options::new(Nics::One, router(), helper())));
    let mut tcp = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(tcp.echo(b"a session", LIMIT));
    let text = check(bundle(&lab, "all.tar.gz", &[]));
    for part in [
        "forwarding since ",
        "live: the daemon runs",
        "pls_router_healthy 1",
        "\"healthy\": true",
        "net.ipv4.ip_forward = ",
        &ROUTER.to_string(),
        &TOOLS.to_string(),
        "driver: veth",
    ] {
        assert!(text.contains(part), "no {part} in it");
    }
    let text = check(bundle(&lab, "none.tar.gz", &["--no-addresses"]));
    let others = [ROUTER, TOOLS, ENDPOINT, PLS_NAT[0], PLS_NAT[1]].map(|address| address.to_string());
    for address in check(addresses(&lab.hosts.router)).into_iter().chain(others) {
        let is_part = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '.');
        let found = text.match_indices(&address).find(|(place, _)| {
            let (before, after) = (&text[..*place], &text[place + address.len()..]);
            !is_part(before.chars().next_back()) && !is_part(after.chars().next())
        });
        assert!(
            found.is_none(),
            "{address} is in it: {:?}",
            found.map(|(place, _)| &text[place.saturating_sub(60)..])
        );
    }
    assert!(text.contains("ipv4-1") && text.contains("mac-1"), "nothing is in the place of addresses");
    // Nobody's in particular.
    assert!(text.contains("0.0.0.0") && text.contains(&PLATFORM.to_string()));

    check(lab.stop_router(Signal::SIGKILL));
    let text = check(bundle(&lab, "dead.tar.gz", &[]));
    assert!(text.contains("status.json") && text.contains("no pls-router daemon is listening"), "{text}");
    assert!(text.contains("net.ipv4.ip_forward = ") && !text.contains("\"healthy\": true"), "{text}");
    // The programs are still there.
    assert!(text.contains("/links/"), "no pins in it");
}
