//! The command line of `cargo xtask deploy`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::inventory;

/// The task: one for all hosts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Action {
    /// Install or upgrade.
    Upgrade,
    /// Put back what the last deploy has replaced, or undo one that was interrupted.
    Rollback,
    /// Say how they are.
    Status,
    /// Take pls-router off.
    Remove,
}

impl Action {
    /// The actions that the first word names.
    const NAMED: [(&str, Self); 3] =
        [("rollback", Self::Rollback), ("status", Self::Status), ("remove", Self::Remove)];

    /// Returns `true` if an option makes sense for this action.
    fn takes(self, option: &str) -> bool {
        match option {
            "inventory" | "ssh-config" => true,
            "max-unavailable" | "dry-run" | "drain" => self != Self::Status,
            "timeout" | "healthy-for" => matches!(self, Self::Upgrade | Self::Rollback),
            "output" => self == Self::Status,
            "purge" => self == Self::Remove,
            _ => self == Self::Upgrade,
        }
    }
}

#[derive(Debug, PartialEq)]
pub(super) struct Options {
    pub(super) action: Action,
    pub(super) hosts: Vec<String>,
    pub(super) inventory: Option<PathBuf>,
    pub(super) config: Option<PathBuf>,
    /// Binaries and packages to install instead of building them.
    pub(super) artifacts: Vec<PathBuf>,
    pub(super) ssh_config: Option<PathBuf>,
    /// The time in which the probe has to answer 200.
    pub(super) timeout: Duration,
    /// The time for which it has to go on doing so.
    pub(super) healthy_for: Duration,
    /// For how long to drain before the restart; `None` if nothing was said.
    pub(super) drain: Option<Duration>,
    /// The number of hosts that may be out of service at a time.
    pub(super) max_unavailable: usize,
    pub(super) dry_run: bool,
    pub(super) restart: bool,
    pub(super) purge: bool,
    pub(super) json: bool,
}

impl Options {
    pub(super) fn parse(arguments: &[OsString]) -> Result<Self, lexopt::Error> {
        use lexopt::prelude::*;
        let named =
            arguments.first().and_then(|first| Action::NAMED.into_iter().find(|(name, _)| first == *name));
        let (action, arguments) = match named {
            Some((_, action)) => (action, &arguments[1..]),
            None => (Action::Upgrade, arguments),
        };
        let mut options = Self {
            action,
            hosts: Vec::new(),
            inventory: None,
            config: None,
            artifacts: Vec::new(),
            ssh_config: None,
            timeout: Duration::from_secs(30),
            healthy_for: Duration::from_secs(15),
            drain: None,
            max_unavailable: 1,
            dry_run: false,
            restart: false,
            purge: false,
            json: false,
        };
        let mut parser = lexopt::Parser::from_args(arguments);
        while let Some(argument) = parser.next()? {
            if let Long(name) = argument
                && !action.takes(name)
            {
                return Err(argument.unexpected());
            }
            match argument {
                Long("inventory") => options.inventory = Some(parser.value()?.into()),
                Long("config") => options.config = Some(parser.value()?.into()),
                Long("binary" | "package") => options.artifacts.push(parser.value()?.into()),
                Long("ssh-config") => options.ssh_config = Some(parser.value()?.into()),
                Long("timeout") => options.timeout = parser.value()?.parse_with(timeout)?,
                Long("healthy-for") => options.healthy_for = parser.value()?.parse_with(duration)?,
                Long("drain") => options.drain = Some(parser.value()?.parse_with(duration)?),
                Long("max-unavailable") => options.max_unavailable = parser.value()?.parse_with(number)?,
                Long("dry-run") => options.dry_run = true,
                Long("restart") => options.restart = true,
                Long("purge") => options.purge = true,
                Short('o') | Long("output") if action.takes("output") => {
                    options.json = parser.value()?.parse_with(is_json)?;
                }
                Value(host) => options.hosts.push(host.parse_with(inventory::host)?),
                Short(_) | Long(_) => return Err(argument.unexpected()),
            }
        }
        if options.hosts.is_empty() && options.inventory.is_none() {
            return Err(
                "which HOST? For example: cargo xtask deploy azureuser@10.0.2.68 --config router.toml".into(),
            );
        }
        Ok(options)
    }
}

/// A time such as `90s` or `10m`; a number alone is in seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed = match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text).ok(),
    };
    // The scripts count seconds.
    parsed
        .filter(|time| time.subsec_nanos() == 0 && time.as_secs() <= 86_400)
        .ok_or_else(|| format!("`{text}` is no time such as 90s or 10m, of a day at most"))
}

fn timeout(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if time.is_zero() { Err("--timeout takes a second at least".to_owned()) } else { Ok(time) }
}

fn number(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=64).contains(number));
    number.ok_or_else(|| "--max-unavailable takes 1 to 64 hosts".to_owned())
}

fn is_json(text: &str) -> Result<bool, String> {
    match text {
        "json" => Ok(true),
        "text" => Ok(false),
        _ => Err(format!("no output format `{text}`; there are text and json")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Options, lexopt::Error> {
        Options::parse(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn hosts_and_options() {
        let options = parsed(&[
            "a@b",
            "--config",
            "my router.toml",
            "c",
            "--dry-run",
            "--timeout=5",
            "--drain",
            "10m",
            "--healthy-for",
            "1m 30s",
            "--max-unavailable",
            "2",
        ])
        .unwrap();
        assert_eq!(
            (options.action, options.hosts),
            (Action::Upgrade, vec!["a@b".to_owned(), "c".to_owned()])
        );
        assert_eq!(options.config, Some("my router.toml".into()));
        assert!(options.dry_run && !options.restart);
        assert_eq!(
            (options.timeout, options.drain),
            (Duration::from_secs(5), Some(Duration::from_secs(600)))
        );
        assert_eq!((options.healthy_for, options.max_unavailable), (Duration::from_secs(90), 2));
    }

    #[test]
    fn the_first_word_names_what_to_do() {
        let options = parsed(&["status", "a", "-o", "json"]).unwrap();
        assert_eq!((options.action, options.json), (Action::Status, true));
        let options = parsed(&["remove", "a", "--purge"]).unwrap();
        assert_eq!((options.action, options.purge), (Action::Remove, true));
        assert_eq!(parsed(&["rollback", "--inventory", "f"]).unwrap().action, Action::Rollback);
        // A host of such a name.
        assert_eq!(parsed(&["--", "status"]).unwrap().hosts, ["status"]);
    }

    #[test]
    fn wrong_usage_is_refused() {
        for none in [&[][..], &["status"], &["rollback", "--dry-run"]] {
            assert!(parsed(none).unwrap_err().to_string().contains("which HOST"));
        }
        let wrong: [&[&str]; 13] = [
            &["--config", "x"],
            &["--", "-oProxyCommand=x"],
            &["a b"],
            &["a", "--timeout", "0"],
            &["a", "--drain", "-1s"],
            &["a", "--drain", "1m; reboot"],
            &["a", "--healthy-for", "1500ms"],
            &["a", "--max-unavailable", "0"],
            &["a", "--force"],
            &["a", "-o", "json"],
            &["status", "a", "--config", "x"],
            &["status", "a", "-o", "xml"],
            &["remove", "a", "--restart"],
        ];
        for arguments in wrong {
            assert!(parsed(arguments).is_err(), "{arguments:?}");
        }
    }
}
