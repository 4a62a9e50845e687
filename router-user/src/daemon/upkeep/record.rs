//! The history of something that is looked after.

use std::time::Instant;

use crate::{
    health::{Conditions, Id, Severity},
    model,
};

/// The record of something that is looked after.
#[derive(Debug)]
pub(crate) struct Record {
    pub(super) what: &'static str,
    pub(super) name: String,
    pub(super) trouble_id: Id,
    pub(super) is_vital: bool,
    pub(super) repairs: u64,
    pub(super) last_repair: Option<Instant>,
    /// The fault that it has now.
    pub(super) trouble: Option<String>,
    /// A flaw although it works.
    pub(super) flaw: Option<(Id, String)>,
    /// The words for repeated changes, if there are any.
    pub(super) contended: Option<String>,
}

impl Record {
    /// Nothing has happened yet to the thing of this kind and name.
    pub(super) fn new(what: &'static str, name: &str, trouble_id: Id, is_vital: bool) -> Self {
        Self {
            what,
            name: name.to_owned(),
            trouble_id,
            is_vital,
            repairs: 0,
            last_repair: None,
            trouble: None,
            flaw: None,
            contended: None,
        }
    }

    /// Returns `true` if it has this name, and a fault that is known.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.name == name && self.trouble.is_some()
    }

    /// Adds what is wrong with it.
    pub(crate) fn add_to(&self, conditions: &mut Conditions) {
        let severity = if self.is_vital { Severity::Down } else { Severity::Degraded };
        if let Some(detail) = &self.trouble {
            conditions.add(severity, self.trouble_id, &self.name, detail);
        }
        if let Some((id, detail)) = &self.flaw {
            conditions.add(Severity::Degraded, *id, &self.name, detail);
        }
        if let Some(detail) = &self.contended {
            conditions.add(Severity::Degraded, Id::Contended, &self.name, detail);
        }
    }

    /// All of it, as `status` has it.
    pub(crate) fn status(&self) -> model::Repairs {
        let flaw = self.flaw.as_ref().map(|(_, detail)| detail);
        let wrong = [self.trouble.as_ref(), flaw, self.contended.as_ref()].into_iter().flatten();
        model::Repairs {
            what: self.what.to_owned(),
            name: self.name.clone(),
            count: self.repairs,
            last_seconds: self.last_repair.map(|last| last.elapsed().as_secs()),
            problem: wrong.cloned().collect::<Vec<_>>().join("; "),
        }
    }
}
