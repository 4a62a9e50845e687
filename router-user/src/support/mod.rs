//! The support bundle: all that is known of this router and its machine, in one file, for somebody
//! who helps from afar.
//!
//! `gather` asks daemon, kernel and programs, each for a few seconds at most, and notes what it
//! could not get. `redact` takes out what looks like a secret, and `pseudonyms` puts names in
//! the place of addresses. `archive` packs.

mod archive;
mod gather;
mod pseudonyms;
mod redact;

pub(crate) use archive::{pack, write_new};
pub(crate) use gather::{Asked, gather};

use pseudonyms::Pseudonyms;

/// A text of the bundle.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// Its name in the archive.
    pub(crate) name: String,
    /// Its content, in words for people.
    pub(crate) what: &'static str,
    pub(crate) text: String,
}

/// A text that could not be had.
#[derive(Clone, Debug)]
pub(crate) struct Missing {
    pub(crate) name: String,
    pub(crate) why: String,
}

/// What was gathered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gathered {
    pub(crate) parts: Vec<Part>,
    pub(crate) missing: Vec<Missing>,
    /// Names of machines, which tell as much as addresses do.
    names: Vec<String>,
}

impl Gathered {
    fn add(&mut self, name: &str, what: &'static str, text: Result<String, String>) {
        match text {
            Ok(text) => self.parts.push(Part { name: name.to_owned(), what, text }),
            Err(why) => self.missing.push(Missing { name: name.to_owned(), why }),
        }
    }

    /// Takes out what looks like a secret and, if `addresses` are not wanted, every address and
    /// name of a machine.
    pub(crate) fn cleaned(self, addresses: bool) -> Self {
        let Self { mut parts, mut missing, names } = self;
        let mut pseudonyms = Pseudonyms::new(&names);
        let mut clean = |text: &mut String| {
            *text = redact::secrets(text);
            if !addresses {
                *text = pseudonyms.replace(text);
            }
        };
        parts.iter_mut().for_each(|part| clean(&mut part.text));
        missing.iter_mut().for_each(|missing| clean(&mut missing.why));
        Self { parts, missing, names: Vec::new() }
    }
}
