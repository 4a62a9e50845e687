//! Scenes: the events on a machine, with the result and the time of each.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    time::Instant,
};

use anyhow::{Context as _, Result};
use harness::packages::Absent;
use lab::machine::Image;

/// The file of the image's directory to which scenes are written: whoever runs the tests shows it.
const FILE: &str = "scenes";

/// The scenes of a test. A machine takes a minute to boot, so that a test has many.
pub(crate) struct Scenes {
    lines: fs::File,
    failed: Vec<String>,
    /// For want of a package.
    skipped: Vec<String>,
}

impl Scenes {
    pub(crate) fn begin(image: &Image, title: &str) -> Result<Self> {
        let path = image.directory().join(FILE);
        let lines = OpenOptions::new().create(true).append(true).open(&path);
        let mut lines = lines.with_context(|| format!("cannot write {}", path.display()))?;
        writeln!(lines, "  {title}").context("cannot write a title")?;
        Ok(Self { lines, failed: Vec::new(), skipped: Vec::new() })
    }

    /// Plays a scene, which says what was seen. The next one is played even if it fails, or cannot
    /// be played for want of a package.
    pub(crate) fn play(&mut self, what: &str, scene: impl FnOnce() -> Result<String>) {
        let began = Instant::now();
        let (word, said) = match scene() {
            Ok(said) => ("ok", said),
            Err(error) if error.is::<Absent>() => {
                self.skipped.push(format!("{what}: {error}"));
                ("skip", format!("{error:#}"))
            }
            Err(error) => {
                self.failed.push(format!("{what}: {error:#}"));
                ("FAILED", format!("{error:#}"))
            }
        };
        let line = format!("    {word:6}{:6.1} s  {what}: {said}", began.elapsed().as_secs_f64());
        println!("{line}");
        // The test's own output has it as well.
        _ = writeln!(self.lines, "{line}");
    }

    /// Fails if a scene has. Otherwise the test counts as skipped if a scene was.
    #[track_caller]
    pub(crate) fn end(self) {
        let Self { failed, skipped, .. } = self;
        assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
        if !skipped.is_empty() {
            harness::skip(format!("all other scenes have passed: {}", skipped.join("; ")));
        }
    }
}
