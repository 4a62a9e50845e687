//! Insertion: claim a slot, walk the chains again, and publish the flow or withdraw it.

use super::{
    search::{InsertError, Search, Vacancy},
    slot::Slot,
    tag::Tag,
};
use crate::{entry::FlowEntry, time::Ticks, tuple::FlowKey};

impl Slot {
    /// Inserts a flow into this slot, if the slot is as the vacancy says. `walk` walks along the
    /// chains of the key; it is given this slot's index, which it passes over.
    ///
    /// # Errors
    /// Returns an error if the flow was not inserted, or was taken back.
    #[inline(always)]
    pub fn insert<'a>(
        &self,
        Vacancy { index, tag: seen }: Vacancy,
        (key, tag, entry): (&FlowKey, Tag, &FlowEntry),
        walk: impl FnOnce(u32) -> Option<&'a Search>,
        now: impl FnOnce() -> Ticks,
    ) -> Result<(), InsertError> {
        if !self.claim(seen) {
            return Err(InsertError::Contended);
        }
        self.write(key, tag, entry);
        let verdict = match walk(index) {
            Some(search) => search.may_publish(),
            None => Err(InsertError::Contended),
        };
        match verdict {
            Ok(()) => self.publish(tag),
            Err(_) => self.withdraw(tag, now()),
        }
        verdict
    }
}
