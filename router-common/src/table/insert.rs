//! Insertion: claim a slot, walk the chains again, and publish the flow or withdraw it.

use super::{
    search::{InsertError, Search, Vacancy},
    slot::Slot,
    tag::Tag,
};
use crate::{entry::FlowEntry, time::Ticks, tuple::FlowKey};

impl Slot {
    /// Inserts a flow into this slot, of this index, if it is as it was `seen`. `walk` walks along
    /// the chains of the key, past a slot of which it is told the index.
    ///
    /// # Errors
    /// Why it was not, or was taken back.
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
