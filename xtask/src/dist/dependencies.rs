//! The crates that a program is made of.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::architecture::Architecture;
use crate::workspace;

/// The packages of this workspace that are in the program: the daemon, and the programs for the
/// kernel inside it.
const ROOTS: [&str; 2] = ["router-user", "router-ebpf"];

/// A crate of somebody else's.
#[derive(Debug)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) version: String,
    /// An expression of SPDX; empty if it names none.
    pub(crate) licence: String,
    /// The directory of its source.
    pub(crate) source: PathBuf,
    pub(crate) repository: Option<String>,
}

/// Returns all crates of others that are in the program for a kind of machine, in order. What only
/// builds or tests it is not in it.
pub(crate) fn of_router(architecture: Architecture) -> Result<Vec<Dependency>> {
    let mut metadata = workspace::cargo("metadata");
    metadata.args(["--format-version=1", "--locked", "--filter-platform", architecture.target()]);
    let output = metadata.output().context("cannot start cargo")?;
    ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let metadata = serde_json::from_slice(&output.stdout).context("cargo metadata is no JSON")?;
    from_metadata(&metadata).context("cargo metadata is not as expected")
}

fn from_metadata(metadata: &Value) -> Option<Vec<Dependency>> {
    let packages: BTreeMap<&str, &Value> =
        metadata["packages"].as_array()?.iter().filter_map(|one| Some((one["id"].as_str()?, one))).collect();
    let nodes: BTreeMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()?
        .iter()
        .filter_map(|one| Some((one["id"].as_str()?, one)))
        .collect();
    let is_root = |package: &Value| ROOTS.iter().any(|root| package["name"] == *root);
    let mut left: Vec<&str> =
        packages.iter().filter(|(_, package)| is_root(package)).map(|(id, _)| *id).collect();
    let mut seen: BTreeSet<&str> = left.iter().copied().collect();
    while let Some(id) = left.pop() {
        for edge in nodes.get(id)?["deps"].as_array()? {
            // The others are for build scripts (`build`) and tests (`dev`).
            let is_linked = edge["dep_kinds"].as_array()?.iter().any(|kind| kind["kind"].is_null());
            let id = edge["pkg"].as_str()?;
            if is_linked && seen.insert(id) {
                left.push(id);
            }
        }
    }
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let dependency = |package: &Value| {
        Some(Dependency {
            name: text(&package["name"])?,
            version: text(&package["version"])?,
            licence: text(&package["license"]).unwrap_or_default(),
            source: PathBuf::from(package["manifest_path"].as_str()?).parent()?.to_owned(),
            repository: text(&package["repository"]),
        })
    };
    let others = seen.iter().filter_map(|id| packages.get(id)).filter(|package| !package["source"].is_null());
    let mut found: Vec<_> = others.filter_map(|package| dependency(package)).collect();
    found.sort_by(|one, other| (&one.name, &one.version).cmp(&(&other.name, &other.version)));
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The licences that the program may contain, as cargo-deny is told.
    fn allowed() -> BTreeSet<String> {
        let policy = std::fs::read_to_string(workspace::root().join("deny.toml")).unwrap();
        let policy: toml::Table = policy.parse().unwrap();
        let allowed = policy["licenses"]["allow"].as_array().unwrap();
        allowed.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn all_licences_are_allowed() {
        let dependencies = of_router(Architecture::X86_64).unwrap();
        assert!(dependencies.len() > 50, "{dependencies:?}");
        let allowed = allowed();
        let is_allowed = |licence: &str| {
            let parsed = spdx::Expression::parse_mode(licence, spdx::ParseMode::LAX);
            parsed.is_ok_and(|expression| {
                expression.evaluate(|one| {
                    let name = one.license.id().map(|id| id.name);
                    name.is_some_and(|name| allowed.contains(name))
                })
            })
        };
        assert!(is_allowed("MIT/Apache-2.0") && is_allowed("GPL-3.0 OR ISC"));
        assert!(!is_allowed("GPL-3.0-only") && !is_allowed("MIT AND MPL-2.0") && !is_allowed(""));
        let refused: Vec<_> = dependencies.iter().filter(|one| !is_allowed(&one.licence)).collect();
        assert!(refused.is_empty(), "not among the licences that are allowed: {refused:?}");
    }

    #[test]
    fn what_only_tests_or_builds_is_not_in_it() {
        let names: Vec<_> =
            of_router(Architecture::Aarch64).unwrap().into_iter().map(|one| one.name).collect();
        for inside in ["tokio", "aya", "aya-ebpf"] {
            assert!(names.iter().any(|name| name == inside), "{inside}");
        }
        for outside in ["proptest", "lexopt", "libtest-mimic", "router-common"] {
            assert!(!names.iter().any(|name| name == outside), "{outside}");
        }
    }
}
