//! The note that this router is draining, on disk: it survives a crash, a restart and an upgrade of
//! the daemon, and no reboot.
//!
//! A small JSON file beside the API's socket. Where that is not on a file system that a boot
//! empties, the kernel's boot id in it tells a note of an earlier boot.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::private;

const FILE: &str = "draining.json";
/// The format of the file.
const FORMAT: u32 = 1;
/// A larger file is none of ours.
const LARGEST: u64 = 4096;

/// The contents of the file.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Note {
    format: u32,
    /// The kernel's boot id.
    boot: String,
    /// The time since boot at which the drain began: unlike the time of day, nobody sets it.
    uptime_seconds: f64,
    /// The time of day at which it began, in RFC 3339 format.
    pub(super) since: String,
}

/// Returns the path of the file of a daemon with this API socket.
pub(super) fn path(socket: &Path) -> PathBuf {
    socket.parent().unwrap_or(Path::new("/")).join(FILE)
}

impl Note {
    /// Returns the note of a drain that begins now.
    pub(super) fn of_now() -> Result<Self> {
        let since = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Ok(Self { format: FORMAT, boot: boot_id()?, uptime_seconds: uptime()?.as_secs_f64(), since })
    }

    /// Returns the time since the drain began.
    pub(super) fn age(&self) -> Result<Duration> {
        let began = Duration::try_from_secs_f64(self.uptime_seconds).context("it has no time")?;
        Ok(uptime()?.saturating_sub(began))
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        private::replace_file(path, &serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads the note of this boot. Removes one of an earlier boot.
    ///
    /// # Errors
    /// Returns an error if there is a file that cannot be used.
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if !metadata.is_file() || metadata.len() > LARGEST {
            bail!("not written by pls-router");
        }
        if !private::is_ours(&metadata) {
            bail!("other users may write it");
        }
        let note: Self = serde_json::from_slice(&fs::read(path)?)?;
        if note.format != FORMAT {
            bail!("it has the format {}, and this version knows {FORMAT}", note.format);
        }
        if note.boot != boot_id()? {
            remove(path)?;
            return Ok(None);
        }
        Ok(Some(note))
    }
}

/// Removes the note, if it is there.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn boot_id() -> Result<String> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(PATH).with_context(|| format!("cannot read {PATH}"))?.trim().to_owned())
}

/// Returns the time since boot.
fn uptime() -> Result<Duration> {
    const PATH: &str = "/proc/uptime";
    let text = fs::read_to_string(PATH).with_context(|| format!("cannot read {PATH}"))?;
    let seconds = text.split_whitespace().next().and_then(|word| word.parse().ok());
    let seconds = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.with_context(|| format!("{PATH} says {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_of_its_boot() {
        let place = tempfile::tempdir().expect("a directory");
        let path = path(&place.path().join("api.sock"));
        assert_eq!(Note::read(&path).expect("no file"), None);
        let note = Note::of_now().expect("a note");
        note.write(&path).expect("it is written");
        assert_eq!(Note::read(&path).expect("a note"), Some(note.clone()));
        assert!(note.age().expect("an age") < Duration::from_secs(60));
        Note { boot: "another".to_owned(), ..note }.write(&path).expect("it is written");
        assert_eq!(Note::read(&path).expect("a note of an earlier boot"), None);
        assert!(!path.exists(), "it is left");
        remove(&path).expect("nothing to do");
    }

    #[test]
    fn what_cannot_be_used_is_an_error() {
        let place = tempfile::tempdir().expect("a directory");
        let path = path(&place.path().join("api.sock"));
        for text in ["", "nonsense", "{\"format\":1}"] {
            fs::write(&path, text).expect("it is written");
            Note::read(&path).expect_err(text);
        }
        let other = Note { format: 2, ..Note::of_now().expect("a note") };
        other.write(&path).expect("it is written");
        let text = Note::read(&path).expect_err("of another version").to_string();
        assert!(text.contains("format 2"), "{text}");
        let directory = place.path().join("none");
        fs::write(&directory, "").expect("a file in the way");
        let text = format!("{:#}", other.write(&directory.join(FILE)).expect_err("no directory"));
        assert!(text.contains("cannot write"), "{text}");
    }
}
