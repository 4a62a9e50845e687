//! The records of a release: the list of what it is made of (SBOM), a manifest and checksums.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Package;
use super::dependencies::Dependency;
use super::runtime::Part;
use super::source::{self, Source};
use crate::{system, toolchain};

/// Returns the list of what a program is made of, in CycloneDX's format: crates, and the parts that
/// are none.
pub(super) fn bill_of_materials(source: &Source, crates: &[Dependency], parts: &[Part]) -> Result<String> {
    let component =
        |purl: &str, name: &str, version: Option<&str>, licence: &str, repository: Option<&str>| {
            let mut component = json!({ "type": "library", "bom-ref": purl, "name": name, "purl": purl });
            if let Some(version) = version {
                component["version"] = version.into();
            }
            if !licence.is_empty() {
                // The slash is an old way to say "or", and no expression of SPDX.
                component["licenses"] = json!([{ "expression": licence.replace('/', " OR ") }]);
            }
            if let Some(repository) = repository {
                component["externalReferences"] = json!([{ "type": "vcs", "url": repository }]);
            }
            component
        };
    let of_crate = |Dependency { name, version, licence, repository, .. }: &Dependency| {
        let purl = format!("pkg:cargo/{name}@{version}");
        component(&purl, name, Some(version), licence, repository.as_deref())
    };
    let of_part = |part: &Part| {
        component(&part.purl(), part.name, part.version.as_deref(), part.licence, Some(part.repository))
    };
    let components: Vec<_> = crates.iter().map(of_crate).chain(parts.iter().map(of_part)).collect();
    let references: Vec<_> = components.iter().map(|component| component["bom-ref"].clone()).collect();
    let bill = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": source::date(source.time, "+%Y-%m-%dT%H:%M:%SZ")?,
            "component": {
                "type": "application",
                "bom-ref": "pls-router",
                "name": "pls-router",
                "version": source.version,
                "licenses": [{ "expression": "MIT OR Apache-2.0" }],
            },
        },
        "components": components,
        "dependencies": [{ "ref": "pls-router", "dependsOn": references }],
    });
    pretty(&bill)
}

/// Writes `manifest.json` and `SHA256SUMS` about these packages.
pub(super) fn write(folder: &Path, source: &Source, packages: &[Package]) -> Result<()> {
    let mut files: Vec<&PathBuf> = packages.iter().flat_map(Package::files).collect();
    files.sort();
    let artifacts = files.iter().map(|file| artifact(file)).collect::<Result<Vec<_>>>()?;
    let bpf = toolchain::bpf()?;
    let (major, minor) = system::OLDEST_KERNEL;
    let manifest = json!({
        "name": "pls-router",
        "version": source.version,
        "commit": source.commit,
        "time": source::date(source.time, "+%Y-%m-%dT%H:%M:%SZ")?,
        "rustc": toolchain::rustc(&["--version"])?.trim(),
        "bpf_rustc": bpf.version.lines().next(),
        "bpf_linker": bpf_build::LINKER_VERSION,
        "oldest_kernel": format!("{major}.{minor}"),
        "layout": router_common::limits::LAYOUT,
        "artifacts": artifacts,
    });
    let path = folder.join("manifest.json");
    fs::write(&path, pretty(&manifest)?).with_context(|| format!("cannot write {}", path.display()))?;
    let sums: String = artifacts
        .iter()
        .filter_map(|one| Some(format!("{}  {}\n", one["sha256"].as_str()?, one["file"].as_str()?)))
        .collect();
    let path = folder.join("SHA256SUMS");
    fs::write(&path, sums).with_context(|| format!("cannot write {}", path.display()))
}

fn artifact(file: &Path) -> Result<Value> {
    let size = file.metadata().with_context(|| format!("cannot read {}", file.display()))?.len();
    let output = Command::new("sha256sum").arg(file).output().context("cannot start sha256sum")?;
    ensure!(output.status.success(), "sha256sum failed ({})", output.status);
    let sum = String::from_utf8_lossy(&output.stdout);
    Ok(json!({
        "file": file.file_name().unwrap_or_default().to_string_lossy(),
        "size": size,
        "sha256": sum.split_whitespace().next().unwrap_or_default(),
    }))
}

fn pretty(value: &Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value).context("cannot write JSON")? + "\n")
}
