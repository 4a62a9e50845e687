//! The number of cases and steps that the tests try. Miri, which checks every access to memory,
//! takes some thousand times as long: under it, they try little.

use proptest::prelude::ProptestConfig;

/// Returns the configuration of property tests.
pub(crate) fn cases() -> ProptestConfig {
    let usual = ProptestConfig::default();
    if cfg!(miri) { ProptestConfig { cases: 1, failure_persistence: None, ..usual } } else { usual }
}

/// Returns how often, or with how much, a test tries something.
pub(crate) const fn tries(usual: u32, under_miri: u32) -> u32 {
    if cfg!(miri) { under_miri } else { usual }
}
