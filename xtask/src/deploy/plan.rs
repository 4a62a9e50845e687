//! The changes that a deploy would make on a machine, in words.

use std::time::Duration;

use super::facts::{CONFIG, Change, Facts, How};
use super::release::Kind;

/// The lines of the plan for a machine.
pub(super) fn lines(facts: &Facts, kind: Kind, version: &str, drain: Option<Duration>) -> Vec<String> {
    let mut lines = files(facts, kind, version);
    if !facts.is_running() {
        lines.push("enable and start pls-router.service".to_owned());
        return lines;
    }
    if let Some(drain) = drain.filter(|_| !facts.draining) {
        let drain = humantime::format_duration(drain);
        lines.push(format!("drain for up to {drain}: the load balancer sends no new connections"));
    }
    let sessions = match facts.sessions.as_str() {
        "" => String::new(),
        sessions => format!("; now {sessions}"),
    };
    lines
        .push(format!("restart pls-router.service: it forwards meanwhile, and no session is lost{sessions}"));
    if facts.draining {
        lines.push("it is draining, and goes on draining: `pls-router undrain` there ends that".to_owned());
    }
    if !facts.healthy && !facts.draining {
        lines.push("what runs there now is unhealthy: `pls-router status` there says why".to_owned());
    }
    lines
}

fn files(facts: &Facts, kind: Kind, version: &str) -> Vec<String> {
    let versions = match facts.installed.as_deref() {
        Some(installed) if installed != version => format!("{installed} -> {version}"),
        _ => version.to_owned(),
    };
    let mut lines = Vec::new();
    match (kind, &facts.offered) {
        (Kind::Package, Some(offered)) => {
            let (word, old) = match (&facts.package_version, facts.package) {
                (Some(old), Some(Change::Same)) if *old == offered.version => ("keep    ", String::new()),
                (Some(old), _) => ("replace ", format!("{old} -> ")),
                (None, _) => ("install ", String::new()),
            };
            lines.push(format!("{word} package pls-router {old}{}: {versions}", offered.version));
            if facts.how == How::Files {
                lines.push("remove   the units in /etc/systemd/system: the package has its own".to_owned());
            }
        }
        _ => {
            lines.push(format!("{}: {versions}", file(facts.binary, "/usr/bin/pls-router")));
            lines.push(file(facts.units, "/etc/systemd/system/pls-router.{service,socket}"));
        }
    }
    lines.push(file(Some(facts.config), CONFIG));
    lines
}

fn file(change: Option<Change>, path: &str) -> String {
    match change {
        Some(Change::New) => format!("install  {path}"),
        Some(Change::Replace) => format!("replace  {path}"),
        Some(Change::Same) => format!("keep     {path} (the same)"),
        Some(Change::Keep | Change::Missing) | None => format!("keep     {path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::remote::Output;
    use super::*;

    fn plan(text: &str, kind: Kind) -> String {
        let output = Output { code: 0, stdout: text.to_owned(), stderr: String::new() };
        let facts = Facts::of(&output, "h").unwrap();
        lines(&facts, kind, "pls-router 0.2", Some(Duration::from_secs(90))).join("\n")
    }

    #[test]
    fn a_first_install_and_an_upgrade() {
        let first =
            plan("how none\nbinary new\nunits new\nconfig new\nsystemd yes\nactive inactive", Kind::Binary);
        assert_eq!(
            first,
            "install  /usr/bin/pls-router: pls-router 0.2\n\
             install  /etc/systemd/system/pls-router.{service,socket}\n\
             install  /etc/pls-router/config.toml\n\
             enable and start pls-router.service"
        );
        let upgrade = plan(
            "how package\npackage replace\nconfig keep\noffered pls-router 0.2-1\npackage_version 0.1-1\n\
             package_state installed\ninstalled pls-router 0.1\nactive active\nhealthy yes\n\
             sessions 3 of 4,096 (0.1%)",
            Kind::Package,
        );
        assert_eq!(
            upgrade,
            "replace  package pls-router 0.1-1 -> 0.2-1: pls-router 0.1 -> pls-router 0.2\n\
             keep     /etc/pls-router/config.toml\n\
             drain for up to 1m 30s: the load balancer sends no new connections\n\
             restart pls-router.service: it forwards meanwhile, and no session is lost; now 3 of 4,096 (0.1%)"
        );
    }

    #[test]
    fn what_somebody_has_drained_is_left_drained() {
        let text = "how files\nbinary replace\nunits same\nconfig keep\nactive active\ndraining yes";
        let plan = plan(text, Kind::Binary);
        assert!(plan.contains("goes on draining") && !plan.contains("drain for up to"), "{plan}");
        assert!(!plan.contains("unhealthy"), "{plan}");
    }
}
