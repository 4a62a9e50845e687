//! How much tests try. Under Miri, which looks at every access to memory, everything takes some
//! thousand times as long: there they try little.

use proptest::prelude::ProptestConfig;

/// How property tests run.
pub(crate) fn cases() -> ProptestConfig {
    let usual = ProptestConfig::default();
    if cfg!(miri) { ProptestConfig { cases: 1, failure_persistence: None, ..usual } } else { usual }
}

/// How often, or with how much, something is tried.
pub(crate) const fn tries(usual: u32, under_miri: u32) -> u32 {
    if cfg!(miri) { under_miri } else { usual }
}
