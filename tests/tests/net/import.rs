//! `pls-router import`, of what a real `iptables-save` says of rules that were made by `iptables`.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lab::{Namespace, Router};
use router_user::config::Config;

use crate::common::{check, only_pls_router, router};

/// As people write them, in all the ways that the published guide and its relatives do.
const RULES: &[&str] = &[
    "-t nat -A PREROUTING -p tcp -i lo --dport 443 -j DNAT --to 203.0.113.10:443",
    "-t nat -A PREROUTING -p tcp -i lo -s 10.0.2.64/26 -d 10.0.2.68 --dport 1433 -m comment --comment orders -j DNAT --to-destination 10.1.0.4",
    "-t nat -A PREROUTING -p udp -m multiport --dports 53,5353:5355 -j DNAT --to-destination 10.1.0.5",
    "-t nat -A PREROUTING -p tcp --dport 8443 -m statistic --mode random --probability 0.5 -j DNAT --to-destination 10.1.0.6:443",
    "-t nat -A PREROUTING -p tcp --dport 8443 -j DNAT --to-destination 10.1.0.7:443",
    "-t nat -A PREROUTING -p tcp --dport 80 -j REDIRECT --to-port 8080",
    "-t nat -N EXTRA",
    "-t nat -A PREROUTING -p tcp -m iprange --src-range 10.0.2.64-10.0.2.67 -j EXTRA",
    "-t nat -A EXTRA -p tcp --dport 5432 -j DNAT --to-destination 10.1.0.8",
    "-t nat -A POSTROUTING -o lo -j MASQUERADE",
    "-t nat -A POSTROUTING -s 10.0.5.0/24 ! -d 10.0.0.0/8 -o lo -j MASQUERADE",
    "-t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
    "-A FORWARD -i lo -j ACCEPT",
];

fn iptables(namespace: &Namespace, rule: &str) -> Result<String> {
    namespace.run("iptables", &rule.split(' ').collect::<Vec<_>>())
}

#[test]
fn rules_of_a_real_iptables_are_translated() {
    only_pls_router();
    let Router::PlsRouter(binary) = router() else { return };
    let namespace = check(Namespace::create(&format!("import{}", std::process::id())));
    if let Err(error) = iptables(&namespace, "-t nat -L") {
        harness::skip(format!("iptables does not work here (package iptables): {error:#}"));
    }
    let mut unknown = Vec::new();
    for rule in RULES {
        // A kernel without one of the modules has the others.
        if let Err(error) = iptables(&namespace, rule) {
            println!("not on this kernel: {rule}: {error:#}");
            unknown.push(*rule);
        }
    }
    let mut saved = check(namespace.run("iptables-save", &["-c"]));
    if namespace.run("ip6tables", &["-t", "nat", "-A", "POSTROUTING", "-o", "lo", "-j", "MASQUERADE"]).is_ok()
    {
        saved.push_str(&check(namespace.run("ip6tables-save", &[])));
    }
    println!("{saved}");
    let text = check(imported(&binary, &saved));
    println!("{text}");
    let config = match Config::parse(&text, std::path::Path::new("import")) {
        Ok(loaded) => loaded.config,
        Err(error) => panic!("{error}\n{text}"),
    };
    let is_there = |part: &str| unknown.iter().all(|rule| !rule.contains(part));
    let targets = |name: &str| {
        let forward = config.forwards.iter().find(|forward| forward.name == name);
        forward.map(|forward| forward.targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    };
    assert_eq!((config.interfaces.pls.as_str(), targets("https").as_deref()), ("lo", Some("203.0.113.10")));
    let wanted = [
        ("comment", "orders", "10.1.0.4"),
        ("multiport", "dns", "10.1.0.5"),
        ("multiport", "udp-5353", "10.1.0.5"),
        ("statistic", "tcp-8443", "10.1.0.6:443 10.1.0.7:443"),
        ("iprange", "postgresql", "10.1.0.8"),
    ];
    for (_, name, target) in wanted.into_iter().filter(|(part, ..)| is_there(part)) {
        assert_eq!(targets(name).as_deref(), Some(target), "{name}: {text}");
    }
    let [masquerade] = &config.masquerades[..] else { panic!("{text}") };
    assert_eq!((masquerade.sources.len(), masquerade.destinations.len()), (1, 8), "{text}");
    assert!(!is_there("REDIRECT") || text.contains("-j REDIRECT --to-ports 8080\n"), "{text}");
    assert!(!saved.contains("ip6tables-save") || text.contains("IPv4 only"), "{text}");
}

fn imported(binary: &std::path::Path, saved: &str) -> Result<String> {
    let file = std::env::temp_dir().join(format!("iptables-save-{}", std::process::id()));
    std::fs::write(&file, saved).context("a file for the rules")?;
    let output = Command::new(binary).args(["import", "iptables-save"]).arg(&file).output().context("import");
    std::fs::remove_file(&file).context("the file of the rules")?;
    let output = output?;
    println!("{}", String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.code().is_some_and(|code| code < 2), "{}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
