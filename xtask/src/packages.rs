//! Getting the system packages that verbs need.

pub(crate) mod apt;
mod guard;

use std::collections::BTreeMap;
use std::fmt;

pub(crate) use harness::packages::Use;
use harness::packages::{self, Package};

/// A package that is needed and could not be had.
#[derive(Debug)]
pub(crate) struct Shortfall {
    package: &'static Package,
    reason: String,
}

impl Shortfall {
    pub(crate) fn new(package: &'static Package, reason: String) -> Self {
        Self { package, reason }
    }

    /// Returns `true` if the package is needed for this use.
    pub(crate) fn is_for(&self, usage: Use) -> bool {
        self.package.usage == usage
    }
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { package: Package { name, why, .. }, reason } = self;
        write!(f, "{name} ({why}): {reason}")
    }
}

/// Installs the packages for `uses` that are missing, after saying which and why. Returns those
/// that could not be had: each is tried by itself where they can't be installed together, so that
/// one never takes another with it.
pub(crate) fn install(uses: &[Use]) -> Vec<Shortfall> {
    uses.iter().flat_map(|usage| install_for(*usage)).collect()
}

fn install_for(usage: Use) -> Vec<Shortfall> {
    let missing: Vec<_> = packages::missing(usage).collect();
    if missing.is_empty() {
        return Vec::new();
    }
    let shortfalls = |reason: &dyn Fn(&Package) -> String| {
        let left = missing.iter().filter(|package| !package.sign.is_there());
        left.map(|package| Shortfall::new(package, reason(package))).collect()
    };
    if let Some(obstacle) = apt::obstacle() {
        return shortfalls(&|_| obstacle.to_owned());
    }
    eprintln!("Installing system packages by apt-get; their services are neither started nor enabled:");
    for Package { name, why, .. } in &missing {
        eprintln!("  {name:<20} {why}");
    }
    let mut reasons = BTreeMap::new();
    let names: Vec<_> = missing.iter().map(|package| package.name).collect();
    if let Err(error) = apt::install(&names) {
        let left: Vec<_> = missing.iter().filter(|package| !package.sign.is_there()).collect();
        if let [package] = left[..] {
            reasons.insert(package.name, format!("{error:#}"));
        } else {
            eprintln!("  not all at once: {error:#}; so one by one");
            for package in left {
                if let Err(error) = apt::install(&[package.name]) {
                    eprintln!("  {} cannot be installed: {error:#}", package.name);
                    reasons.insert(package.name, format!("{error:#}"));
                }
            }
        }
    }
    shortfalls(&|package| {
        let reason = reasons.get(package.name).cloned();
        reason.unwrap_or_else(|| format!("it is installed but did not bring {}", package.sign))
    })
}
