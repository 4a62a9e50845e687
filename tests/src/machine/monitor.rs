//! The emulator's monitor: what one does to a machine from outside, as its power switch.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// The time that it may take to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// The socket of the monitor, which speaks QMP.
#[derive(Debug)]
pub(super) struct Monitor {
    socket: PathBuf,
}

impl Monitor {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub(super) fn path(&self) -> &Path {
        &self.socket
    }

    /// Gives a command without arguments, and waits until it is done.
    pub(super) fn say(&self, command: &str) -> Result<()> {
        let stream = UnixStream::connect(&self.socket).context("cannot reach the emulator's monitor")?;
        stream.set_read_timeout(Some(LIMIT)).context("cannot set a timeout")?;
        let mut lines = BufReader::new(&stream).lines();
        // It greets, and wants to be greeted before all else.
        for said in ["qmp_capabilities", command] {
            writeln!(&stream, "{{\"execute\": \"{said}\"}}").context("cannot speak to the monitor")?;
            loop {
                let line = lines.next().context("the monitor says nothing")?;
                let line = line.with_context(|| format!("no answer to {said}"))?;
                if line.starts_with("{\"return\"") {
                    break;
                }
                if line.starts_with("{\"error\"") {
                    bail!("{said}: the monitor says {line}");
                }
            }
        }
        Ok(())
    }
}
