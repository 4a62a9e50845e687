//! Corrects session counters that a killed daemon left too high.
//!
//! To remove a session is to retire its flow, and to count one less when that has succeeded. A
//! daemon that is killed between the two leaves the session in the counters for good: in that of
//! all sessions, and in its source's of half-open ones.
//!
//! The programs go on counting while the table is looked through: they count a session a moment
//! before it is in the table, one that is half-open a moment longer, and one that moves to another
//! target also while it is in neither place. So only what is too much at each of many looks, a
//! sweep apart, is taken back; where sessions come and go all the time, that may be less than there
//! is. A flood of packets that never make a session, while no port is free, could keep a counter
//! ahead that long. So looks count only while nothing of the kind is refused.

use router_common::{maps::stats::CpuStats, reason::Reason};
use tracing::{info, warn};

use crate::dataplane::{CounterTable, FlowTable, Surplus};

/// The number of consecutive comparisons that have to find a surplus, one each sweep.
const LOOKS: u32 = 10;

/// Packets that were counted as a session for a moment and then refused.
const REFUSALS: [Reason; 5] =
    [Reason::TableFull, Reason::HalfOpenLimit, Reason::Contended, Reason::PortsExhausted, Reason::Rejected];

/// Compares the session counters of an earlier daemon with the flow table, repeatedly.
#[derive(Debug, Default)]
pub(crate) struct Recount {
    looks: u32,
    refused: u64,
    common: Surplus,
}

impl Recount {
    /// Compares once, and corrects the counters after the last comparison; then returns `None`. No
    /// session may be removed at the same time.
    pub(crate) fn look(mut self, flows: &FlowTable, counters: &CounterTable) -> Option<Self> {
        let found = flows.surplus();
        let stats = counters.read();
        match stats {
            Ok(stats) => {
                let Some(surplus) = self.note(found, refused(&stats)) else { return Some(self) };
                if surplus != Surplus::default() {
                    flows.take_back(&surplus);
                    let Surplus { sessions, half_open } = surplus;
                    let half_open: u32 = half_open.values().sum();
                    info!(
                        sessions,
                        half_open, "corrected session counters that a killed daemon left too high"
                    );
                }
                None
            }
            // The next look may do better.
            Err(error) => {
                warn!("{error:#}");
                Some(Self::default())
            }
        }
    }

    /// Notes what one look has found: what is too much for good, when that is certain.
    fn note(&mut self, found: Surplus, refused: u64) -> Option<Surplus> {
        let goes_on = self.looks > 0 && self.refused == refused;
        let common = std::mem::take(&mut self.common);
        *self = if goes_on {
            Self { looks: self.looks + 1, refused, common: common.common(&found) }
        } else {
            Self { looks: 1, refused, common: found }
        };
        (self.looks == LOOKS).then(|| std::mem::take(&mut self.common))
    }
}

fn refused(stats: &CpuStats) -> u64 {
    REFUSALS.iter().map(|reason| stats.reasons[*reason as usize].packets).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn surplus(sessions: u32, half_open: &[(u32, u32)]) -> Surplus {
        Surplus { sessions, half_open: half_open.iter().copied().collect() }
    }

    /// The answer of the last of these looks; those before have none.
    fn last(recount: &mut Recount, looks: impl IntoIterator<Item = (Surplus, u64)>) -> Option<Surplus> {
        let mut answer = None;
        for (found, refused) in looks {
            assert_eq!(answer, None, "before the last look");
            answer = recount.note(found, refused);
        }
        answer
    }

    #[test]
    fn what_is_too_much_at_every_look_is_so_for_good() {
        let looks = (0..LOOKS).map(|look| {
            let found = match look {
                3 => surplus(4, &[(7, 1), (9, 2)]),
                5 => surplus(1, &[(7, 3), (8, 1)]),
                _ => surplus(2, &[(7, 2), (8, 1), (9, 5)]),
            };
            (found, 100)
        });
        assert_eq!(last(&mut Recount::default(), looks), Some(surplus(1, &[(7, 1)])));
    }

    #[test]
    fn looks_begin_anew_where_sessions_are_refused() {
        let mut recount = Recount::default();
        let found = || surplus(1, &[(7, 1)]);
        assert_eq!(last(&mut recount, (1..LOOKS).map(|_| (found(), 100))), None);
        assert_eq!(last(&mut recount, (1..LOOKS).map(|_| (found(), 101))), None);
        assert_eq!(last(&mut recount, [(surplus(1, &[]), 101)]), Some(surplus(1, &[])));
    }
}
