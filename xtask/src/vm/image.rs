//! The virtual machine's replacement for a disk: an archive that the kernel unpacks into its
//! memory, with the tests, the few programs that they start, and the libraries of all of them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::kernel::Files;
use super::tools::Tools;
use super::{LAST_LINE, Program};
use crate::{system, workspace};

/// A shell with all that belongs to it.
pub(super) const SHELL: &str = "busybox";

/// Programs of this machine that tests start.
const PROGRAMS: &[&str] = &["ip", "tc"];

/// The files of the repository that tests read.
const DATA: &[&str] = &["router-user/tests/bpf_fuzz/regressions"];

/// The first process, which the kernel starts from the archive.
const INIT: &str = include_str!("init.sh");

/// The path of a test in the machine.
pub(super) fn test_path(name: &str) -> String {
    format!("/tests/{name}")
}

/// Builds the archive in the kernel's folder. `script` is what the machine does once it is up.
pub(super) fn build(kernel: &Files, tools: &Tools, tests: &[Program], script: &str) -> Result<PathBuf> {
    build_with(kernel, tools, script, |root| add_tests(root, tools, tests))
}

/// Same as [`build`], with what `add` puts into the directory of its files: a shell, in any case.
pub(super) fn build_with(
    kernel: &Files,
    tools: &Tools,
    script: &str,
    add: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let root = kernel.folder.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    for folder in ["proc", "sys", "dev", "run", "tmp", "etc", "bin", "tests", "modules"] {
        fs::create_dir_all(root.join(folder))
            .with_context(|| format!("cannot make {folder} of the image"))?;
    }
    let init = INIT.replace("@LAST_LINE@", LAST_LINE);
    write_program(&root.join("init"), &init)?;
    write_program(&root.join("script"), script)?;
    for module in &kernel.modules {
        copy(module, &root.join("modules").join(module.file_name().unwrap_or_default()))?;
    }
    add(&root)?;
    archive(tools, &root, &kernel.folder.join("image"))
}

fn add_tests(root: &Path, tools: &Tools, tests: &[Program]) -> Result<()> {
    let shell = tools.file(SHELL)?;
    copy(&shell, &root.join("bin").join(SHELL))?;
    copy_libraries(&shell, root)?;
    for name in PROGRAMS {
        let program = system::find_program(name).with_context(|| format!("there is no {name} here"))?;
        copy(&program, &root.join("bin").join(name))?;
        copy_libraries(&program, root)?;
    }
    for test in tests {
        let inside = inside(root, Path::new(&test_path(test.name)));
        // Most of a binary is debug information, which would have to fit into the machine's memory.
        system::run(tools.command("strip")?.arg("--strip-debug").arg("-o").arg(&inside).arg(&test.binary))?;
        copy_libraries(&test.binary, root)?;
    }
    for data in DATA {
        let outside = workspace::root().join(data);
        copy_folder(&outside, &inside(root, &outside))?;
    }
    Ok(())
}

/// The place in the image of a file that has the same path there as here.
fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn write_program(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", path.display()))
}

pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    // The target of a link, under the name of the link.
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let entries = from.read_dir().with_context(|| format!("cannot read {}", from.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", from.display()))?.path();
        copy(&path, &to.join(path.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

/// Copies the shared libraries of a program, and what loads them, to the places where they are
/// here.
fn copy_libraries(program: &Path, root: &Path) -> Result<()> {
    let output =
        Command::new("ldd").arg(program).stderr(Stdio::null()).output().context("cannot start ldd")?;
    // It fails for a program without any.
    for path in libraries(&String::from_utf8_lossy(&output.stdout)) {
        copy(path, &inside(root, path))?;
    }
    Ok(())
}

/// The paths in what `ldd` prints: `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)`, or the
/// path alone.
fn libraries(output: &str) -> impl Iterator<Item = &Path> {
    output
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')).map(Path::new))
}

/// Packs the folder as the kernel reads it
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
fn archive(tools: &Tools, root: &Path, to: &Path) -> Result<PathBuf> {
    let file = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    let mut find = Command::new("find");
    let mut find =
        find.arg(".").current_dir(root).stdout(Stdio::piped()).spawn().context("cannot start find")?;
    let names = find.stdout.take().context("find has no standard output")?;
    let packed = tools
        .command("cpio")?
        .args(["--create", "--quiet", "--format=newc", "--owner=0:0"])
        .current_dir(root)
        .stdin(names)
        .stdout(file)
        .status()
        .context("cannot start cpio")?;
    let found = find.wait().context("lost find")?;
    ensure!(packed.success() && found.success(), "cpio cannot pack {}", root.display());
    Ok(to.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_what_ldd_prints() {
        let output = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tlibmissing.so => not found\n";
        let paths: Vec<_> = libraries(output).collect();
        assert_eq!(
            paths,
            [Path::new("/lib/x86_64-linux-gnu/libm.so.6"), Path::new("/lib64/ld-linux-x86-64.so.2")]
        );
        assert_eq!(libraries("\tstatically linked\n").count(), 0);
    }
}
