//! Sequences from seeds.

use super::{category::Category, maker::Maker, plan::Sequence, spice, talk};
use crate::random::Draw as _;

/// The number of sequences with separate addresses and ports.
pub(super) const SLOTS: u32 = 15_500;
/// Returns the default slot of a seed.
pub(super) const fn slot(seed: u64) -> u32 {
    (seed % SLOTS as u64) as u32
}

/// The sequence of a seed.
pub(super) fn generate(seed: u64, slot: u32, categories: &[Category]) -> Sequence {
    let mut maker = Maker::new(seed, slot, categories);
    let mut lists = Vec::new();
    for _ in 0..if maker.random.percent(35) { 2 } else { 1 } {
        let session = maker.session();
        lists.push(talk::steps(&mut maker, session));
    }
    if maker.sessions.len() == 2 && maker.wants(Category::Collision, 30) {
        maker.collide();
    }
    for _ in 0..maker.random.pick(&[1, 1, 2, 3]) {
        let of = maker.random.usize(..lists.len());
        let list = std::mem::take(&mut lists[of]);
        lists[of] = spice::add(&mut maker, of, list);
    }
    let steps = maker.interleave(lists);
    Sequence { seed, slot, sessions: maker.sessions, steps }
}
