//! The last good answers on disk, so that they survive a crash, a restart and a boot while no name
//! server answers.
//!
//! One small JSON file, in the directory that systemd keeps for the service (`StateDirectory=`), or
//! else beside the API's socket. It says what each name stood for, and when that was answered.
//! Names are found by what the configuration calls them, whatever rules they are in.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::choice::{Choice, choose};
use crate::{
    daemon::{kernel::netlink::OwnAddresses, logging::text::printable},
    private,
};

/// Older answers are not used: an address that a name had weeks ago has probably another owner by
/// now. A running daemon keeps an answer for as long as it fails to get
/// another; this is for one that starts.
const OLDEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// A larger file is none of ours: 512 rules of 32 targets with long names and many addresses are
/// less.
const LARGEST: u64 = 16 << 20;
/// The format of the file.
const FORMAT: u32 = 1;
const FILE: &str = "names.json";

/// The addresses of a name, and the time of the answer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Remembered {
    /// The addresses, in order.
    pub(super) addresses: Vec<Ipv4Addr>,
    /// Seconds since 1970.
    answered: u64,
}

impl Remembered {
    pub(super) fn new(addresses: Vec<Ipv4Addr>, answered: SystemTime) -> Self {
        let since_1970 = answered.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { addresses, answered: since_1970.as_secs() }
    }

    /// Returns the age of the answer; a clock that was set back makes it new.
    pub(super) fn age(&self, now: SystemTime) -> Duration {
        let answered = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(self.answered));
        answered.and_then(|answered| now.duration_since(answered).ok()).unwrap_or_default()
    }
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    format: u32,
    names: BTreeMap<String, Remembered>,
}

/// The file and what is in it.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    names: BTreeMap<String, Remembered>,
    /// `true` if the file lacks something of `names`.
    unsaved: bool,
}

impl Memory {
    /// Returns the path of the file of a daemon with this API socket.
    pub(super) fn path(socket: &Path) -> PathBuf {
        // systemd.exec(5): several directories are separated by colons.
        let state = std::env::var_os("STATE_DIRECTORY").and_then(|list| std::env::split_paths(&list).next());
        let directory = state.filter(|directory| directory.is_absolute());
        directory.as_deref().or(socket.parent()).unwrap_or(Path::new("/")).join(FILE)
    }

    /// Reads the file. What cannot be used of it is left out, with a warning: a damaged file is as
    /// good as none. It is held to what answers are held to, on the machine with these addresses:
    /// it says what some server has said, and perhaps to another machine.
    pub(super) fn load(path: PathBuf, now: SystemTime, own: &OwnAddresses) -> Self {
        let mut names = read(&path).unwrap_or_else(|error| {
            warn!("the last known addresses of names are lost: {}: {error:#}", path.display());
            BTreeMap::new()
        });
        let mut unusable = Vec::new();
        names.retain(|name, remembered| match choose(std::mem::take(&mut remembered.addresses), own) {
            Ok(Choice { addresses, .. }) => {
                remembered.addresses = addresses;
                remembered.age(now) <= OLDEST
            }
            Err(why) => {
                unusable.push(format!("{}: {why}", printable(name)));
                false
            }
        });
        if let Some(first) = unusable.first() {
            let (count, path) = (unusable.len(), path.display());
            warn!(count, "last known addresses of names in {path} are not used: the first of {first}");
        }
        Self { path, names, unsaved: false }
    }

    /// Returns the last answer for a name, if it is not too old.
    pub(super) fn get(&self, name: &str) -> Option<&Remembered> {
        self.names.get(name)
    }

    /// Takes in an answer. A file that says the same and is not much older need not be written
    /// again.
    pub(super) fn note(&mut self, name: &str, addresses: &[Ipv4Addr], now: SystemTime) {
        const RENEWED: Duration = Duration::from_secs(60 * 60);
        let is_known = self
            .names
            .get(name)
            .is_some_and(|known| known.addresses == addresses && known.age(now) < RENEWED);
        if !is_known {
            self.names.insert(name.to_owned(), Remembered::new(addresses.to_vec(), now));
            self.unsaved = true;
        }
    }

    /// Has the contents be returned again by the next call of [`unsaved`](Self::unsaved): they
    /// could not be written.
    pub(super) fn is_still_unsaved(&mut self) {
        self.unsaved = true;
    }

    /// Returns the contents that have to be written, if there are any.
    pub(super) fn unsaved(&mut self, now: SystemTime) -> Option<Unsaved> {
        if !std::mem::take(&mut self.unsaved) {
            return None;
        }
        self.names.retain(|_, remembered| remembered.age(now) <= OLDEST);
        Some(Unsaved {
            path: self.path.clone(),
            contents: Contents { format: FORMAT, names: self.names.clone() },
        })
    }
}

fn read(path: &Path) -> Result<BTreeMap<String, Remembered>> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.into()),
    };
    if !metadata.is_file() || metadata.len() > LARGEST {
        bail!("not written by pls-router");
    }
    if !private::is_ours(&metadata) {
        bail!("other users may write it");
    }
    let Contents { format, names } = serde_json::from_slice(&fs::read(path)?)?;
    if format != FORMAT {
        bail!("it has the format {format}, and this version knows {FORMAT}");
    }
    Ok(names)
}

/// Contents that have to be written.
pub(super) struct Unsaved {
    path: PathBuf,
    contents: Contents,
}

impl Unsaved {
    /// Writes the file.
    pub(super) fn write(&self) -> Result<()> {
        let Self { path, contents } = self;
        let write = || private::replace_file(path, &serde_json::to_vec_pretty(contents)?);
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
    const B: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);

    fn at(hours: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + hours * 3600)
    }

    fn load(path: PathBuf, now: SystemTime) -> Memory {
        Memory::load(path, now, &OwnAddresses::default())
    }

    fn saved(memory: &mut Memory, now: SystemTime) -> bool {
        memory.unsaved(now).map(|unsaved| unsaved.write().unwrap()).is_some()
    }

    #[test]
    fn names_come_back_until_they_are_too_old() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("below/names.json");
        let mut memory = load(path.clone(), at(0));
        assert!(memory.get("a.example").is_none() && !saved(&mut memory, at(0)));
        memory.note("a.example", &[A, B], at(0));
        memory.note("b.example.", &[B], at(100));
        assert!(saved(&mut memory, at(100)) && !saved(&mut memory, at(100)));

        let again = load(path.clone(), at(160));
        assert_eq!(again.get("a.example").map(|known| known.addresses.as_slice()), Some([A, B].as_slice()));
        assert_eq!(
            again.get("a.example").map(|known| known.age(at(160))),
            Some(Duration::from_secs(160 * 3600))
        );
        assert_eq!(again.get("b.example.").map(|known| known.addresses.as_slice()), Some([B].as_slice()));
        assert!(again.get("b.example").is_none(), "another name: it goes through the search list");
        let late = load(path.clone(), at(200));
        assert!(late.get("a.example").is_none() && late.get("b.example.").is_some());
        // A clock that was set back.
        assert!(load(path, at(0)).get("b.example.").is_some());
    }

    #[test]
    fn the_file_is_written_when_it_says_something_else() {
        let directory = tempfile::tempdir().unwrap();
        let mut memory = load(directory.path().join(FILE), at(0));
        memory.note("a.example", &[A], at(0));
        assert!(saved(&mut memory, at(0)));
        memory.note("a.example", &[A], at(0) + Duration::from_secs(60));
        assert!(!saved(&mut memory, at(0)), "the same");
        memory.note("a.example", &[A], at(2));
        assert!(saved(&mut memory, at(2)), "the same, but later");
        memory.note("a.example", &[B], at(2));
        assert!(saved(&mut memory, at(2)), "another");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_damaged_or_foreign_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        for text in [
            "",
            "{",
            "[]",
            "\0\0\0",
            "{\"format\": 2, \"names\": {}}",
            "{\"format\": 1, \"names\": {\"a.example\": {\"addresses\": [\"203.0.113.300\"], \"answered\": 1}}}",
            "{\"format\": 1, \"names\": {\"a.example\": {\"addresses\": [], \"answered\": 1700000000}}}",
            "{\"format\": 1, \"names\": {\"a.example\": {\"addresses\": [\"203.0.113.10\"], \"answered\": -1}}}",
            "{\"format\": 1, \"names\": {\"a.example\": {\"addresses\": [\"168.63.129.16\"], \"answered\": 1700000000}}}",
        ] {
            fs::write(&path, text).unwrap();
            let mut memory = load(path.clone(), at(0));
            assert!(memory.get("a.example").is_none(), "{text}");
            // And it is no obstacle.
            memory.note("a.example", &[A], at(0));
            assert!(saved(&mut memory, at(0)));
            assert!(load(path.clone(), at(0)).get("a.example").is_some(), "{text}");
        }
        // One bad address of two.
        fs::write(&path, "{\"format\": 1, \"names\": {\"a.example\": {\"addresses\": [\"127.0.0.1\", \"203.0.113.10\"], \"answered\": 1700000000}}}").unwrap();
        let memory = load(path.clone(), at(0));
        assert_eq!(memory.get("a.example").map(|known| known.addresses.as_slice()), Some([A].as_slice()));
        // As little as a server may say, a file may: of this machine, too many, what a terminal
        // acts upon.
        let many: Vec<String> = (0..100).map(|n| format!("\"203.0.113.{n}\"")).collect();
        let own = OwnAddresses { own: [B].into(), ..OwnAddresses::default() };
        for (addresses, used) in [("\"203.0.113.11\"", None), (&*many.join(","), Some(32))] {
            let name = format!("{{\"addresses\": [{addresses}], \"answered\": 1700000000}}");
            let text =
                format!("{{\"format\": 1, \"names\": {{\"a.example\": {name}, \"\\u001b[2J\": {name}}}}}");
            fs::write(&path, text).unwrap();
            let memory = Memory::load(path.clone(), at(0), &own);
            let known = memory.get("a.example").map(|known| known.addresses.as_slice());
            assert_eq!(known.map(<[_]>::len), used);
            assert!(!known.is_some_and(|known| known.contains(&B)));
        }
        // A directory, or a link by another user.
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert!(load(path.clone(), at(0)).names.is_empty());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let mut memory = load(path, at(0));
        memory.note("a.example", &[A], at(0));
        assert!(memory.unsaved(at(0)).unwrap().write().unwrap_err().to_string().contains(FILE));
    }
}
