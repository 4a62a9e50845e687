//! `cargo xtask deploy status`: how the hosts are.

use serde_json::{Value, json};

use super::facts::{self, How};
use super::remote::Remote;
use super::scripts;
use super::ssh::Ssh;

/// The state of a host, as far as it is known.
#[derive(Debug, Default, PartialEq)]
pub(super) struct HostStatus {
    host: String,
    /// Why it cannot be asked.
    error: Option<String>,
    machine: String,
    kernel: String,
    how: Option<How>,
    package: Option<String>,
    /// The version of the binary that is installed.
    version: Option<String>,
    /// The version of a deploy before, to which `rollback` goes back.
    previous: Option<String>,
    /// The deploy that was interrupted.
    unfinished: Option<String>,
    active: String,
    enabled: String,
    /// The output of `pls-router status -o json`.
    status: Option<Value>,
}

impl HostStatus {
    /// Asks a host.
    pub(super) fn ask(ssh: &Ssh, host: &str) -> Self {
        let asked = || {
            let remote = Remote::connect(ssh, host, 0)?;
            // A clock that is off is the deploy's business alone.
            let mut machine = remote.machine.clone();
            machine.time = None;
            facts::suits(host, &machine)?;
            let output = remote.run(scripts::STATUS, &[])?;
            anyhow::ensure!(output.code == 0, "{host}: cannot be asked: {}", output.text());
            let mut status = Self::parse(host, &output.stdout);
            status.machine.clone_from(&machine.architecture);
            status.kernel.clone_from(&machine.kernel);
            Ok(status)
        };
        asked().unwrap_or_else(|error: anyhow::Error| Self {
            host: host.to_owned(),
            error: Some(format!("{error:#}")),
            ..Self::default()
        })
    }

    fn parse(host: &str, text: &str) -> Self {
        let fact = |key: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(' '));
            let found = lines.find(|(name, _)| *name == key).map(|(_, value)| value.to_owned());
            found.filter(|value| !value.is_empty())
        };
        let status = fact("status").and_then(|text| serde_json::from_str(&text).ok());
        Self {
            host: host.to_owned(),
            how: fact("how").as_deref().and_then(How::of),
            package: fact("package"),
            version: fact("version").map(|text| text.trim_start_matches("pls-router ").to_owned()),
            previous: fact("previous").map(|text| text.trim_start_matches("pls-router ").to_owned()),
            unfinished: fact("unfinished"),
            active: fact("active").unwrap_or_default(),
            enabled: fact("enabled").unwrap_or_default(),
            status,
            ..Self::default()
        }
    }

    fn get(&self, pointer: &str) -> Option<&Value> {
        self.status.as_ref()?.pointer(pointer)
    }

    /// The version of the daemon that runs.
    fn running(&self) -> Option<&str> {
        self.get("/version")?.as_str()
    }

    fn sessions(&self) -> Option<u64> {
        self.get("/flows/sessions")?.as_u64()
    }

    fn is_draining(&self) -> bool {
        self.get("/draining").is_some_and(|draining| !draining.is_null())
    }

    /// Returns `true` if its probe answers 200.
    pub(super) fn is_healthy(&self) -> bool {
        self.get("/healthy").and_then(Value::as_bool) == Some(true)
    }

    /// Its health in a word or a few.
    fn health(&self) -> String {
        match (self.how, self.is_healthy()) {
            (None, _) => "unreachable".to_owned(),
            (Some(How::None), _) => "not installed".to_owned(),
            (_, true) => "healthy".to_owned(),
            (_, false) if self.is_draining() => "draining".to_owned(),
            (_, false) if self.active != "active" => format!("service {}", self.active),
            (_, false) => "UNHEALTHY".to_owned(),
        }
    }

    /// Returns the remarks that a person needs beside the table.
    fn remarks(&self) -> Vec<String> {
        let mut remarks: Vec<String> = self.error.iter().cloned().collect();
        if let Some(unfinished) = &self.unfinished {
            remarks.push(format!(
                "half of a deploy is there: {unfinished} (`cargo xtask deploy rollback {}` undoes it)",
                self.host
            ));
        }
        if let (Some(installed), Some(running)) = (&self.version, self.running())
            && installed != running
        {
            remarks.push(format!("{installed} is installed, and {running} still runs"));
        }
        if self.how.is_some_and(|how| how != How::None) && self.enabled != "enabled" {
            remarks.push(format!("the service does not start at boot: it is {}", self.enabled));
        }
        if let Some(reasons) = self.get("/reasons").and_then(Value::as_array) {
            remarks.extend(reasons.iter().filter_map(Value::as_str).map(str::to_owned));
        }
        remarks
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let how = self.how.map(|how| match how {
            How::Package => "package",
            How::Files => "files",
            How::None => "none",
        });
        json!({
            "host": self.host,
            "error": self.error,
            "machine": self.machine,
            "kernel": self.kernel,
            "installed_as": how,
            "package_version": self.package,
            "version": self.version,
            "running_version": self.running(),
            "previous_version": self.previous,
            "unfinished": self.unfinished,
            "active": self.active,
            "enabled": self.enabled == "enabled",
            "healthy": self.is_healthy(),
            "draining": self.is_draining(),
            "sessions": self.sessions(),
            "status": self.status,
        })
    }
}

/// The table for people, with remarks below.
pub(super) fn table(hosts: &[HostStatus]) -> String {
    let mut rows = vec![["HOST", "VERSION", "INSTALLED", "HEALTH", "SESSIONS", "BEFORE"].map(str::to_owned)];
    for host in hosts {
        let installed = match (host.how, &host.package) {
            (Some(How::Package), Some(version)) => format!("package {version}"),
            (Some(How::Files), _) => "files".to_owned(),
            _ => "-".to_owned(),
        };
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        let sessions = host.sessions().map_or_else(|| "-".to_owned(), |number| number.to_string());
        rows.push([
            host.host.clone(),
            text(&host.version),
            installed,
            host.health(),
            sessions,
            text(&host.previous),
        ]);
    }
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut table = String::new();
    for row in &rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        table.push_str(cells.join("  ").trim_end());
        table.push('\n');
    }
    for host in hosts {
        for remark in host.remarks() {
            table.push_str(&format!("\n{}: {remark}\n", host.host));
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "how package\npackage 0.2.0-1\nversion pls-router 0.2.0\nactive active\nenabled enabled\n\
        previous pls-router 0.1.0\nstatus {\"version\": \"0.2.0\", \"healthy\": true, \"reasons\": [], \
        \"draining\": null, \"flows\": {\"sessions\": 12, \"capacity\": 4096}}\n";

    #[test]
    fn a_host_that_is_well() {
        let status = HostStatus::parse("r1", GOOD);
        assert_eq!(
            table(&[status]),
            "HOST  VERSION  INSTALLED        HEALTH   SESSIONS  BEFORE\n\
             r1    0.2.0    package 0.2.0-1  healthy  12        0.1.0\n"
        );
        let json = HostStatus::parse("r1", GOOD).json();
        assert_eq!(json["installed_as"], "package");
        assert_eq!((&json["sessions"], &json["healthy"]), (&json!(12), &json!(true)));
        assert_eq!(json["previous_version"], "0.1.0");
    }

    #[test]
    fn what_is_wrong_is_told() {
        let text = GOOD
            .replace("version pls-router 0.2.0", "version pls-router 0.3.0")
            .replace("true", "false")
            .replace("\"reasons\": []", "\"reasons\": [\"no next hop\"]")
            .replace("enabled enabled", "enabled disabled\nunfinished 0.2 -> 0.3");
        let bad = HostStatus::parse("r1", &text);
        assert!(!bad.is_healthy());
        let lost =
            HostStatus { host: "r2".to_owned(), error: Some("no".to_owned()), ..HostStatus::default() };
        let none = HostStatus::parse("r3", "how none\nactive inactive\n");
        let table = table(&[bad, lost, none]);
        for said in [
            "UNHEALTHY",
            "r2    -        -                unreachable",
            "r3    -        -                not installed",
            "r1: half of a deploy is there: 0.2 -> 0.3",
            "r1: 0.3.0 is installed, and 0.2.0 still runs",
            "r1: the service does not start at boot: it is disabled",
            "r1: no next hop",
            "r2: no",
        ] {
            assert!(table.contains(said), "nothing about \"{said}\" in:\n{table}");
        }
        assert!(!table.contains("r3: "), "{table}");
    }

    #[test]
    fn a_drained_host_is_told_from_a_broken_one() {
        let text = GOOD.replace("true", "false").replace("null", "{\"draining\": true}");
        let status = HostStatus::parse("r1", &text);
        assert_eq!(status.health(), "draining");
        assert_eq!(status.json()["draining"], true);
        let status = HostStatus::parse("r1", "how files\nactive failed\n");
        assert_eq!(status.health(), "service failed");
    }
}
