//! Progress of a deploy. Plain lines, as several hosts may talk at the same time.

use std::time::{Duration, Instant};

/// The pause between two lines about something that takes long.
const PACE: Duration = Duration::from_secs(3);

/// The way in which all hosts tell their story.
#[derive(Debug)]
pub(super) struct Report {
    /// The width of the names in front of every line; 0 if each host has a heading instead.
    width: usize,
}

impl Report {
    /// For these hosts, which are done in turn or at the same time.
    pub(super) fn new(hosts: &[String], in_turn: bool) -> Self {
        let widest = hosts.iter().map(|host| host.chars().count()).max().unwrap_or_default();
        Self { width: if in_turn { 0 } else { widest } }
    }

    /// The story of one host.
    pub(super) fn of<'a>(&'a self, host: &'a str) -> Story<'a> {
        Story { report: self, host }
    }

    fn lines(&self, host: &str, what: &str, text: &str) -> String {
        let mut heading = what;
        let mut lines = String::new();
        for line in text.lines() {
            let line = match self.width {
                0 => format!("  {heading:<12}{line}"),
                width => format!("{host:<width$}  {heading:<12}{line}"),
            };
            lines.push_str(line.trim_end());
            lines.push('\n');
            heading = "";
        }
        lines
    }
}

/// The story of one host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Story<'a> {
    report: &'a Report,
    host: &'a str,
}

impl<'a> Story<'a> {
    pub(super) fn host(self) -> &'a str {
        self.host
    }

    /// Begins it, with a heading where hosts are done in turn.
    pub(super) fn begin(self) {
        if self.report.width == 0 {
            println!("{}", self.host);
        }
    }

    /// Lines of it, the first with a word in front.
    pub(super) fn tell(self, what: &str, text: &str) {
        // At once, or the lines of several hosts would be mixed.
        print!("{}", self.report.lines(self.host, what, text));
    }

    /// Ends it badly.
    pub(super) fn fail(self, error: &anyhow::Error) {
        eprintln!("error: {error:#}");
    }

    /// Something of which `total` bytes have to be done.
    pub(super) fn progress(self, what: &'static str, total: u64) -> Progress<'a> {
        Progress { story: self, what, total, done: 0, told: Instant::now() }
    }
}

/// Something that may take long. Says how far it is, now and then.
#[derive(Debug)]
pub(super) struct Progress<'a> {
    story: Story<'a>,
    what: &'static str,
    total: u64,
    done: u64,
    told: Instant,
}

impl Progress<'_> {
    /// So many bytes more are done.
    pub(super) fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        if self.told.elapsed() >= PACE {
            self.told = Instant::now();
            self.story.tell(self.what, &format!("{} of {} MB", megabytes(self.done), megabytes(self.total)));
        }
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{}", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_in_turn_have_headings_and_others_names() {
        let hosts = ["a".to_owned(), "router".to_owned()];
        assert_eq!(
            Report::new(&hosts, true).lines("a", "check", "one\ntwo"),
            "  check       one\n              two\n"
        );
        assert_eq!(Report::new(&hosts, false).lines("a", "check", "one\n"), "a       check       one\n");
    }

    #[test]
    fn sizes_are_in_megabytes() {
        assert_eq!((megabytes(14_260_000).as_str(), megabytes(99_999).as_str()), ("14.2", "0.0"));
    }
}
