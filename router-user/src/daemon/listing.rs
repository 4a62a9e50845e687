//! The list of sessions, written while the table is walked: a million of them are 400 MB of text, which no daemon should have in its memory.

use std::{io, sync::Arc};

use axum::body::{Body, Bytes};
use futures_util::stream;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{reports, shared::Shared};
use crate::model::{Flow, FlowQuery};

/// What is gathered before it is passed on, in bytes, and how many such parts may wait for a slow reader.
const PART: usize = 64 << 10;
const PARTS: usize = 4;

/// The sessions that are wanted, as a JSON array with a session a line. Whoever stops reading stops the walk.
pub(super) fn sessions(shared: Arc<Shared>, query: FlowQuery) -> Body {
    let (sender, receiver) = channel(PARTS);
    // A walk through a large table takes a while, and waits for its reader.
    tokio::task::spawn_blocking(move || {
        let mut list = List::begin(sender);
        reports::flows(&shared, &query, |flow| list.add(flow));
        list.end();
    });
    read(receiver)
}

/// A part of the list.
enum Part {
    More(Vec<u8>),
    Last(Vec<u8>),
}

/// The list, as far as it has not been passed on.
struct List {
    text: Vec<u8>,
    /// What comes in front of the next session.
    separator: &'static str,
    sender: Sender<Part>,
}

impl List {
    fn begin(sender: Sender<Part>) -> Self {
        Self { text: Vec::with_capacity(PART), separator: "[\n", sender }
    }

    /// Adds a session; whether anybody wants more.
    fn add(&mut self, flow: &Flow) -> bool {
        self.text.extend_from_slice(self.separator.as_bytes());
        self.separator = ",\n";
        if serde_json::to_writer(&mut self.text, flow).is_err() {
            return false;
        }
        if self.text.len() < PART {
            return true;
        }
        let full = std::mem::replace(&mut self.text, Vec::with_capacity(PART));
        self.sender.blocking_send(Part::More(full)).is_ok()
    }

    fn end(mut self) {
        self.text.extend_from_slice(if self.separator == ",\n" { b"\n]\n" } else { b"[]\n" });
        // A reader that has gone wants no end.
        let _ = self.sender.blocking_send(Part::Last(self.text));
    }
}

/// The parts as a body. One that ends without its last part breaks off: nobody may take it for whole.
fn read(receiver: Receiver<Part>) -> Body {
    Body::from_stream(stream::unfold(Some(receiver), async |receiver| {
        let mut receiver = receiver?;
        Some(match receiver.recv().await {
            Some(Part::More(text)) => (Ok(Bytes::from(text)), Some(receiver)),
            Some(Part::Last(text)) => (Ok(Bytes::from(text)), None),
            None => (Err(io::Error::other("the walk through the table has broken off")), None),
        })
    }))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn flow(number: u64) -> Flow {
        let end = "10.0.2.70:443".parse().expect("an address");
        Flow {
            rule: "https".to_owned(),
            protocol: "tcp".to_owned(),
            client: end,
            listen: end,
            snat: end,
            target: end,
            state: "established".to_owned(),
            age_seconds: number,
            idle_seconds: 0,
            expires_seconds: 0,
            forward_packets: 0,
            forward_bytes: 0,
            reply_packets: 0,
            reply_bytes: 0,
        }
    }

    async fn listed(count: u64) -> Vec<Flow> {
        let (sender, receiver) = channel(PARTS);
        let writer = tokio::task::spawn_blocking(move || {
            let mut list = List::begin(sender);
            assert!((0..count).all(|number| list.add(&flow(number))));
            list.end();
        });
        let text = read(receiver).collect().await.expect("a whole list").to_bytes();
        writer.await.expect("no crash");
        let lines = text.iter().filter(|byte| **byte == b'\n').count() as u64;
        assert_eq!(lines, if count == 0 { 1 } else { count + 2 }, "a session a line");
        serde_json::from_slice(&text).expect("JSON")
    }

    #[tokio::test]
    async fn lists_of_any_length_are_whole() {
        for count in [0, 1, 2, 5000] {
            assert_eq!(listed(count).await, (0..count).map(flow).collect::<Vec<_>>());
        }
    }

    #[tokio::test]
    async fn what_breaks_off_is_no_list() {
        let (sender, receiver) = channel(PARTS);
        sender.send(Part::More(b"[\n".to_vec())).await.expect("room");
        drop(sender);
        assert!(read(receiver).collect().await.is_err());
    }

    /// A reader that is stuck does not keep the daemon from ending.
    #[test]
    fn the_walk_ends_with_the_runtime() {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let (sender, receiver) = channel(PARTS);
        runtime.spawn(async {
            let _body = read(receiver);
            std::future::pending::<()>().await;
        });
        let (ended, end) = std::sync::mpsc::channel();
        runtime.spawn_blocking(move || {
            let mut list = List::begin(sender);
            ended.send((0..u64::MAX).find(|number| !list.add(&flow(*number)))).expect("somebody listens");
        });
        drop(runtime);
        assert!(end.recv().expect("it has ended").is_some());
    }

    #[tokio::test]
    async fn whoever_stops_reading_stops_the_walk() {
        let (sender, receiver) = channel(PARTS);
        let walk = tokio::task::spawn_blocking(move || {
            let mut list = List::begin(sender);
            (0..u64::MAX).find(|number| !list.add(&flow(*number)))
        });
        let mut body = read(receiver);
        body.frame().await.expect("a part").expect("a good one");
        drop(body);
        assert!(walk.await.expect("no crash").is_some());
    }
}
