//! The book of all connections: which router had each, and what became of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Result;

use super::{Fleet, crowd::Kind};

/// What a connection was for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stay {
    /// It was to stay.
    Long,
    /// It had one message.
    Short,
}

/// What became of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fate {
    /// Alive, or ended by its client.
    Lived,
    /// Lost.
    Lost,
}

#[derive(Debug)]
struct Entry {
    kind: Kind,
    stay: Stay,
    /// The routers that have had it, one after the other.
    routers: Vec<usize>,
    fate: Fate,
}

/// The entries that a row of the table counts.
type Wanted<'a> = &'a dyn Fn(&Entry) -> bool;

/// The book.
#[derive(Debug, Default)]
pub(super) struct Book {
    /// By the client's port.
    entries: BTreeMap<u16, Entry>,
    /// New connections that were not made.
    failed: u64,
}

impl Book {
    /// Enters these connections.
    pub(super) fn enter(&mut self, kind: Kind, stay: Stay, ports: impl IntoIterator<Item = u16>) {
        for port in ports {
            let entry = Entry { kind, stay, routers: Vec::new(), fate: Fate::Lived };
            self.entries.entry(port).or_insert(entry);
        }
    }

    /// Finds out which routers have the connections, and notes those that have moved.
    pub(super) fn look(&mut self, fleet: &Fleet) -> Result<()> {
        for ((kind, port), carriers) in fleet.carriers()? {
            let Some(entry) = self.entries.get_mut(&port).filter(|entry| entry.kind == kind) else {
                continue;
            };
            // The router that a flow has left knows it for some time.
            let new = carriers.into_iter().filter(|router| !entry.routers.contains(router));
            let new: Vec<_> = new.collect();
            entry.routers.extend(new);
        }
        Ok(())
    }

    /// Notes what is lost.
    pub(super) fn lose(&mut self, ports: &BTreeSet<u16>) {
        for port in ports {
            if let Some(entry) = self.entries.get_mut(port) {
                entry.fate = Fate::Lost;
            }
        }
    }

    /// Notes so many connections that were not made.
    pub(super) fn fail(&mut self, count: usize) {
        self.failed += count as u64;
    }

    /// The router that has a connection now, as far as is known.
    pub(super) fn router(&self, port: u16) -> Option<usize> {
        self.entries.get(&port)?.routers.last().copied()
    }

    /// Those of these connections that this router has.
    pub(super) fn on(&self, router: usize, ports: &BTreeSet<u16>) -> BTreeSet<u16> {
        ports.iter().filter(|port| self.router(**port) == Some(router)).copied().collect()
    }

    /// Those of these connections that have been on more than one router.
    pub(super) fn moved(&self, ports: &BTreeSet<u16>) -> BTreeSet<u16> {
        let moved = |port: &u16| self.entries.get(port).is_some_and(|entry| entry.routers.len() > 1);
        ports.iter().filter(|port| moved(port)).copied().collect()
    }

    /// The table at the end: a column for each router.
    pub(super) fn table(&self, names: &[String]) -> String {
        let count = |router: usize, wanted: Wanted<'_>| {
            let of_router = |entry: &&Entry| entry.routers.first() == Some(&router) && wanted(entry);
            self.entries.values().filter(of_router).count()
        };
        let is = |entry: &Entry, kind, stay| entry.kind == kind && entry.stay == stay;
        let long = |entry: &Entry| is(entry, Kind::Tcp, Stay::Long);
        let socket = |entry: &Entry| is(entry, Kind::Udp, Stay::Long);
        let moved = |entry: &Entry| entry.routers.len() > 1;
        let rows: [(&str, Wanted<'_>); 8] = [
            ("TCP connections opened", &long),
            ("  lived until their client ended them", &|entry| long(entry) && entry.fate == Fate::Lived),
            ("  lost", &|entry| long(entry) && entry.fate == Fate::Lost),
            ("  moved to another router", &|entry| long(entry) && moved(entry)),
            ("TCP connections of one message", &|entry| is(entry, Kind::Tcp, Stay::Short)),
            ("UDP sockets opened", &socket),
            ("  moved to another router", &|entry| socket(entry) && moved(entry)),
            ("  lost", &|entry| socket(entry) && entry.fate == Fate::Lost),
        ];
        let mut table = format!("{:40}", "what each connection saw, by router");
        for name in names {
            table.push_str(&format!("{name:>9}"));
        }
        for (what, wanted) in rows {
            table.push_str(&format!("\n{what:40}"));
            for router in 0..names.len() {
                table.push_str(&format!("{:9}", count(router, wanted)));
            }
        }
        table.push_str(&format!("\n{:40}{:9}", "new TCP connections without an answer", self.failed));
        table
    }
}

/// A time in seconds, with as many digits as matter.
pub(super) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_counts_by_the_first_router() {
        let mut book = Book::default();
        book.enter(Kind::Tcp, Stay::Long, [1, 2]);
        book.enter(Kind::Udp, Stay::Long, [3]);
        for (port, routers) in [(1, vec![0]), (2, vec![1]), (3, vec![1, 0])] {
            book.entries.get_mut(&port).expect("an entry").routers = routers;
        }
        book.lose(&[2].into());
        let table = book.table(&["router".to_owned(), "router2".to_owned()]);
        let row = |what: &str| {
            let row = table.lines().find(|line| line.starts_with(what)).expect(what);
            row[40..].split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(row("TCP connections opened"), "1 1");
        assert_eq!(row("  lived"), "1 0");
        assert_eq!(row("UDP sockets opened"), "0 1");
        assert_eq!(book.moved(&[1, 2, 3].into()), [3].into());
        assert_eq!(book.on(0, &[1, 2, 3].into()), [1, 3].into());
    }
}
