//! The list of sessions, written while the table is walked: a million of them are hundreds of
//! megabytes of text, which no daemon should have in its memory.

use std::io;

use axum::body::{Body, Bytes};
use futures_util::stream;
use tokio::task::spawn_blocking;

use crate::model::Flow;

/// As much is written at a time, in bytes, and a little more.
const PART: usize = 64 << 10;

/// A walk through the sessions that are wanted: shows those from a place on to a function until
/// that answers `false`, and says from where to go on; `None` after the last.
pub(crate) trait Walk:
    FnMut(u32, &mut dyn FnMut(&Flow) -> bool) -> Option<u32> + Send + 'static
{
}

impl<W: FnMut(u32, &mut dyn FnMut(&Flow) -> bool) -> Option<u32> + Send + 'static> Walk for W {}

/// Returns the sessions of a walk, at most `limit`, as a JSON array with one session on each line.
/// The walk proceeds as the client reads; nothing else waits for a client that stops reading. An
/// interrupted answer lacks its end, so the client can tell that it is incomplete.
pub(crate) fn body(walk: impl Walk, limit: usize) -> Body {
    let list = List { walk, next: Some(0), left: limit, begun: false };
    Body::from_stream(stream::unfold(Some(list), async |list| {
        let mut list = list.filter(|list| list.next.is_some())?;
        // A walk through a large table takes a while.
        let part = spawn_blocking(move || list.part().map(|text| (text, list)));
        Some(match part.await.map_err(io::Error::other).flatten() {
            Ok((text, list)) => (Ok(Bytes::from(text)), Some(list)),
            Err(error) => (Err(error), None),
        })
    }))
}

/// A list, as far as it has been written.
struct List<W> {
    walk: W,
    /// The place to go on from; `None` when the end is written.
    next: Option<u32>,
    /// Sessions that may still come.
    left: usize,
    /// `true` if any has come.
    begun: bool,
}

impl<W: Walk> List<W> {
    /// Writes the next part.
    fn part(&mut self) -> io::Result<Vec<u8>> {
        let Self { walk, next, left, begun } = self;
        let mut text = Vec::with_capacity(PART + PART / 64);
        let mut written = Ok(());
        *next = next.filter(|_| *left > 0).and_then(|start| {
            walk(start, &mut |flow| {
                text.extend_from_slice(if std::mem::replace(begun, true) { b",\n" } else { b"[\n" });
                *left -= 1;
                written = serde_json::to_writer(&mut text, flow);
                written.is_ok() && *left > 0 && text.len() < PART
            })
        });
        written?;
        if *left == 0 {
            *next = None;
        }
        if next.is_none() {
            text.extend_from_slice(if *begun { b"\n]\n" } else { b"[]\n" });
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn flow(number: u32) -> Flow {
        let end = "10.0.2.70:443".parse().expect("an address");
        Flow {
            rule: "https".to_owned(),
            protocol: "tcp".to_owned(),
            client: end,
            listen: end,
            snat: end,
            target: end,
            state: "established".to_owned(),
            age_seconds: u64::from(number),
            idle_seconds: 0,
            expires_seconds: 0,
            forward_packets: 0,
            forward_bytes: 0,
            reply_packets: 0,
            reply_bytes: 0,
        }
    }

    /// A walk through as many sessions.
    fn walk(count: u32) -> impl Walk {
        move |start: u32, each: &mut dyn FnMut(&Flow) -> bool| {
            (start..count).find(|number| !each(&flow(*number))).map(|number| number + 1)
        }
    }

    #[tokio::test]
    async fn lists_of_any_length_are_whole() {
        for (count, limit) in [(0, 9), (1, 9), (9, 9), (10, 9), (1, 1), (5000, usize::MAX), (5000, 4000)] {
            let text = body(walk(count), limit).collect().await.expect("a whole list").to_bytes();
            let listed = (count as usize).min(limit);
            let lines = text.iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(lines, if listed == 0 { 1 } else { listed + 2 }, "a session a line");
            let flows: Vec<Flow> = serde_json::from_slice(&text).expect("JSON");
            assert_eq!(flows, (0..listed as u32).map(flow).collect::<Vec<_>>());
        }
    }

    #[tokio::test]
    async fn what_breaks_off_is_no_list() {
        let broken = |start: u32, each: &mut dyn FnMut(&Flow) -> bool| {
            assert_eq!(start, 0, "a crash");
            while each(&flow(0)) {}
            Some(1)
        };
        assert!(body(broken, usize::MAX).collect().await.is_err());
    }

    #[tokio::test]
    async fn the_table_is_walked_no_further_than_is_read() {
        let (shown, count) = std::sync::mpsc::channel();
        let endless = move |start: u32, each: &mut dyn FnMut(&Flow) -> bool| {
            let last = (start..).find(|number| !each(&flow(*number)));
            shown.send(last).expect("somebody counts");
            last.map(|number| number + 1)
        };
        let mut body = body(endless, usize::MAX);
        let part = body.frame().await.expect("a part").expect("a good one").into_data().expect("text");
        assert!(part.len() < 2 * PART, "{}", part.len());
        drop(body);
        assert_eq!(count.iter().count(), 1, "parts that were walked");
    }
}
