//! The source that is packaged: its commit, time and version.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::workspace;

/// The version in the workspace's `Cargo.toml`.
const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// The source that a package is made of.
#[derive(Debug)]
pub(super) struct Source {
    /// The commit, if this is a clone, and `-dirty` behind it if files differ from it.
    pub(super) commit: Option<String>,
    /// The commit's time, in seconds since 1970: the time of all files in the package, so that the
    /// same source gives the same bytes.
    pub(super) time: u64,
    /// The package's version.
    pub(super) version: String,
}

impl Source {
    /// Looks at the source; `version` is taken in place of its own.
    pub(super) fn look(version: Option<&str>) -> Result<Self> {
        if let Some(version) = version {
            require_valid(version)?;
        }
        let commit = git(&["rev-parse", "--short=12", "HEAD"]);
        let is_dirty =
            git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|it| !it.is_empty());
        let time = match std::env::var("SOURCE_DATE_EPOCH") {
            Ok(time) => time.parse().context("SOURCE_DATE_EPOCH is not a number of seconds since 1970")?,
            // Without git this is somebody's copy of the source: any fixed time will do.
            Err(_) => git(&["show", "--no-patch", "--format=%ct", "HEAD"])
                .and_then(|time| time.parse().ok())
                .unwrap_or(0),
        };
        let tag = git(&["describe", "--exact-match", "--tags", "--match", &format!("v{RELEASE}"), "HEAD"]);
        let version = match (version, &commit) {
            (Some(version), _) => version.to_owned(),
            (None, Some(commit)) if tag.is_none() || is_dirty => snapshot(time, commit, is_dirty)?,
            (None, _) => RELEASE.to_owned(),
        };
        let commit = commit.map(|commit| if is_dirty { format!("{commit}-dirty") } else { commit });
        Ok(Self { commit, time, version })
    }
}

/// The version of a commit that is no release: before the release that it leads to, after the
/// commits before it.
fn snapshot(time: u64, commit: &str, is_dirty: bool) -> Result<String> {
    let time = date(time, "+%Y%m%d%H%M%S")?;
    let dirty = if is_dirty { ".dirty" } else { "" };
    Ok(format!("{RELEASE}~{time}.{commit}{dirty}"))
}

/// A time of day in UTC, by a format of date(1).
pub(super) fn date(time: u64, format: &str) -> Result<String> {
    let mut command = Command::new("date");
    command.env("LC_ALL", "C").args(["--utc", &format!("--date=@{time}"), format]);
    let output = command.output().context("cannot start date")?;
    ensure!(output.status.success(), "date failed ({})", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn require_valid(version: &str) -> Result<()> {
    let allowed = |one: char| one.is_ascii_alphanumeric() || ".+~".contains(one);
    ensure!(
        version.starts_with(|first: char| first.is_ascii_digit()) && version.chars().all(allowed),
        "`{version}` is no version of a Debian package: it begins with a digit, and has letters, digits and . + ~ only"
    );
    Ok(())
}

/// Returns the output of git in the repository, if it is there and succeeds.
fn git<S: AsRef<OsStr>>(arguments: &[S]) -> Option<String> {
    let mut command = Command::new("git");
    command.args(arguments).current_dir(workspace::root()).stderr(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_comes_before_its_release() {
        let earlier = snapshot(1_700_000_000, "abc", false).unwrap();
        assert_eq!(earlier, format!("{RELEASE}~20231114221320.abc"));
        let newer = snapshot(1_700_000_001, "0bc", true).unwrap();
        let comes_before = |one: &str, other: &str| {
            Command::new("dpkg").args(["--compare-versions", one, "lt", other]).status().unwrap().success()
        };
        if crate::system::find_program("dpkg").is_none() {
            return eprintln!("skipped: there is no dpkg here");
        }
        assert!(comes_before(&earlier, &newer));
        assert!(comes_before(&newer, RELEASE));
    }

    #[test]
    fn a_version_is_debians() {
        require_valid("0.0.9+test").unwrap();
        for wrong in ["", "v1", "1.0-1", "1 0", "1/2"] {
            assert!(require_valid(wrong).is_err(), "{wrong}");
        }
    }
}
