//! Names for the directories of this machine in what is compiled, so that the same source gives the
//! same bytes in another directory and on another machine.

use std::path::Path;

use crate::toolchain::home_dir;

/// Returns the options of rustc that give this machine's directories fixed names: of the workspace,
/// of the crates that cargo has fetched, and of the standard library's source, if the compiler with
/// this `sysroot` and this output of `rustc -vV` has that.
pub fn path_remapping(workspace: &Path, sysroot: &Path, version: &str) -> Vec<String> {
    let mut names = vec![(workspace.to_path_buf(), "/pls-router".to_owned())];
    if let Some(cargo) = home_dir("CARGO_HOME", ".cargo") {
        // One directory for each registry or mirror, with a hash of its address in the name.
        let registries = cargo.join("registry/src").read_dir().into_iter().flatten().flatten();
        names.extend(registries.map(|registry| (registry.path(), "/crates".to_owned())));
    }
    if let Some(commit) = version.lines().find_map(|line| line.strip_prefix("commit-hash: ")) {
        // The name that the compiler itself uses where the source is not installed.
        names.push((sysroot.join("lib/rustlib/src/rust"), format!("/rustc/{commit}")));
    }
    names.iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_get_fixed_names() {
        let options = path_remapping(
            Path::new("/home/me/router"),
            Path::new("/opt/rust"),
            "rustc 1.96.0\ncommit-hash: abc\nhost: x\n",
        );
        assert_eq!(options[0], "--remap-path-prefix=/home/me/router=/pls-router");
        assert_eq!(options.last().unwrap(), "--remap-path-prefix=/opt/rust/lib/rustlib/src/rust=/rustc/abc");
    }
}
