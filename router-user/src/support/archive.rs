//! Packs a bundle: a gzip-compressed tar archive, which every system can read.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::SystemTime,
};

use flate2::{Compression, write::GzEncoder};

use super::{Gathered, Missing, Part};

/// The file that comes first and lists the others.
const CONTENTS: &str = "CONTENTS.txt";

/// Packs everything below a directory of this name.
pub(crate) fn pack(gathered: &Gathered, directory: &str, now: SystemTime) -> io::Result<Vec<u8>> {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    let contents = contents(gathered);
    let parts = gathered.parts.iter().map(|Part { name, text, .. }| (name.as_str(), text));
    for (name, text) in std::iter::once((CONTENTS, &contents)).chain(parts) {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(text.len()).unwrap_or(u64::MAX));
        header.set_mode(0o600);
        header.set_mtime(seconds);
        archive.append_data(&mut header, format!("{directory}/{name}"), text.as_bytes())?;
    }
    archive.into_inner()?.finish()
}

/// Lists what is in a bundle, and what is not.
fn contents(gathered: &Gathered) -> String {
    let mut text = String::from("In this bundle:\n\n");
    for Part { name, what, text: part } in &gathered.parts {
        text.push_str(&format!("  {name:<32} {:>9} bytes  {what}\n", part.len()));
    }
    if !gathered.missing.is_empty() {
        text.push_str("\nNot in it:\n\n");
        for Missing { name, why } in &gathered.missing {
            text.push_str(&format!("  {name:<32} {why}\n"));
        }
    }
    text
}

/// Writes a file that must not be there yet, for its owner alone.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
