//! apt-get: what it installs, what it fetches without installing it, and why it did not.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail, ensure};

use super::guard;
use crate::system;

/// The services among the packages that Debian would start, now and at every boot.
const UNITS: &[(&str, &[&str])] = &[
    ("nginx", &["nginx.service"]),
    ("openssh-server", &["ssh.service", "ssh.socket"]),
    ("postgresql", &["postgresql.service"]),
    ("lighttpd", &["lighttpd.service"]),
    ("coturn", &["coturn.service"]),
];

/// Why nothing can be installed here.
pub(crate) fn obstacle() -> Option<&'static str> {
    if system::find_program("apt-get").is_none() {
        Some("there is no apt-get here; install it by this system's means")
    } else if !system::is_root() {
        Some("installing packages needs root (apt-get install --no-install-recommends)")
    } else {
        None
    }
}

/// Returns `true` if Debian's package of that name is installed.
pub(crate) fn is_installed(name: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", name])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

/// Installs packages by one call of apt-get, without starting any service. An error is the reason
/// in apt's own words.
pub(crate) fn install(names: &[&str]) -> Result<()> {
    if let Some(obstacle) = obstacle() {
        bail!(obstacle);
    }
    let new: Vec<_> = names.iter().copied().filter(|name| !is_installed(name)).collect();
    if !all_known(names) {
        eprintln!("  the package lists do not have all of them");
        _ = update();
    }
    let installed = with_fresh_lists(|| try_install(names));
    // Some may be installed although others are not.
    disable_units(&new);
    installed
}

/// Does it, and once more with new package lists where it fails: old ones name files that the
/// mirror has no more.
fn with_fresh_lists<T>(work: impl Fn() -> Result<T>) -> Result<T> {
    match work() {
        Err(error) if system::is_root() && !is_updated() => {
            eprintln!("  {error:#}; once more with new package lists");
            update()?;
            work()
        }
        outcome => outcome,
    }
}

/// The result of the update of the package lists, once there was one.
static UPDATED: OnceLock<Result<(), String>> = OnceLock::new();

fn is_updated() -> bool {
    UPDATED.get().is_some()
}

/// Updates the package lists, once: they do not change in the meantime, and without a network there
/// is no use in trying again.
fn update() -> Result<()> {
    let update =
        || system::run(apt_get().args(["--quiet=2", "update"])).map_err(|error| format!("{error:#}"));
    UPDATED.get_or_init(update).clone().map_err(anyhow::Error::msg)
}

/// The names of packages that apt knows and that match a regular expression. Where there are none,
/// the lists may be old, or not have been fetched yet: root fetches them and looks once more.
pub(crate) fn named(pattern: &str) -> Result<Vec<String>> {
    let names = search(&mut Command::new("apt-cache"), pattern)?;
    if !names.is_empty() || !system::is_root() {
        return Ok(names);
    }
    update()?;
    search(&mut Command::new("apt-cache"), pattern)
}

fn search(command: &mut Command, pattern: &str) -> Result<Vec<String>> {
    let output = command.args(["search", "--names-only", pattern]).output();
    let output = output.context("cannot start apt-cache")?;
    ensure!(output.status.success(), "apt-cache failed ({})", output.status);
    let lines = String::from_utf8_lossy(&output.stdout);
    Ok(lines.lines().filter_map(|line| Some(line.split_once(" - ")?.0.to_owned())).collect())
}

/// Fetches a package and unpacks it into `folder`, which is made; installs nothing. That needs no
/// root.
pub(crate) fn unpack(name: &str, folder: &Path) -> Result<()> {
    with_fresh_lists(|| download_and_extract(&[name.to_owned()], folder, &Source::default()))
}

/// Same as [`unpack`], with all dependencies of the packages, as if nothing were installed here:
/// the unpacked files fit together, for any versions on this machine.
pub(crate) fn unpack_with_dependencies(names: &[&str], folder: &Path) -> Result<()> {
    with_fresh_lists(|| download_and_extract(&closure(names)?, folder, &Source::default()))
}

/// Packages and all that they depend on, each as `name=version`.
fn closure(names: &[&str]) -> Result<Vec<String>> {
    let mut simulate = apt_get();
    simulate.args(["--simulate", "--no-install-recommends"]);
    // Nothing is installed, and no other apt uses this cache.
    for option in ["Dir::State::status=/dev/null", "Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache="] {
        simulate.args(["-o", option]);
    }
    let output = simulate.arg("install").args(names).output().context("cannot start apt-get")?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let said = format!("{said}{}", String::from_utf8_lossy(&output.stderr));
        bail!("{}", reason(&said).unwrap_or_else(|| format!("apt-get failed ({})", output.status)));
    }
    let closure: Vec<_> = said.lines().filter_map(to_install).collect();
    ensure!(!closure.is_empty(), "apt-get does not say what {} depends on", names.join(", "));
    Ok(closure)
}

/// `Inst libfdt1 (1.6.1-4+b1 Debian:12.11/stable [amd64]) []`
fn to_install(line: &str) -> Option<String> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
    Some(format!("{name}={}", rest.split([' ', ')']).next()?))
}

/// The key that Debian's releases are signed with.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Returns an error if nothing can tell whether packages are Debian's.
pub(crate) fn require_keyring() -> Result<()> {
    ensure!(
        Path::new(KEYRING).is_file(),
        "there is no {KEYRING}: Debian's package debian-archive-keyring has it"
    );
    Ok(())
}

/// Where packages are fetched from: this machine's own lists, unless others are made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Source {
    /// The options of apt.
    options: Vec<OsString>,
}

impl Source {
    /// Lists that are kept in `directory`, apart from this machine's, which stay as they are.
    /// Fetches them. The lines are those of sources.list(5). Needs no root.
    pub(crate) fn fetch(directory: &Path, lines: &str) -> Result<Self> {
        Self::fetch_with(directory, lines, &[])
    }

    /// Same as [`Self::fetch`], for packages of another architecture.
    pub(crate) fn fetch_foreign(directory: &Path, lines: &str, architecture: &str) -> Result<Self> {
        let options =
            ["APT::Architecture", "APT::Architectures"].map(|name| format!("{name}={architecture}"));
        Self::fetch_with(directory, lines, &options)
    }

    fn fetch_with(directory: &Path, lines: &str, further: &[String]) -> Result<Self> {
        let make = |name: &str| {
            let path = directory.join(name);
            std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))
        };
        for name in ["lists/partial", "cache/archives/partial"] {
            make(name)?;
        }
        let list = directory.join("sources.list");
        std::fs::write(&list, lines).with_context(|| format!("cannot write {}", list.display()))?;
        let option = |name: &str, value: &Path| {
            let mut option = OsString::from(name);
            option.push("=");
            option.push(value);
            [OsString::from("-o"), option]
        };
        let options = [
            option("Dir::Etc::sourcelist", &list),
            option("Dir::Etc::sourceparts", Path::new("-")),
            option("Dir::State::lists", &directory.join("lists")),
            option("Dir::Cache", &directory.join("cache")),
            option("APT::Sandbox::User", Path::new("root")),
            // Or the versions that are installed here would be wanted.
            option("Dir::State::status", Path::new("/dev/null")),
        ];
        let mut options = options.concat();
        options.extend(further.iter().flat_map(|option| ["-o".into(), option.into()]));
        let source = Self { options };
        eprintln!("  $ apt-get update (of lists in {})", directory.display());
        say_and_judge(apt_get().args(&source.options).args(["--quiet=2", "update"]))?;
        Ok(source)
    }

    /// The names of packages in these lists that match a regular expression.
    pub(crate) fn named(&self, pattern: &str) -> Result<Vec<String>> {
        search(Command::new("apt-cache").args(&self.options), pattern)
    }

    /// Same as [`unpack`], for several packages of these lists.
    pub(crate) fn unpack(&self, names: &[String], folder: &Path) -> Result<()> {
        download_and_extract(names, folder, self)
    }
}

fn download_and_extract(packages: &[String], folder: &Path, source: &Source) -> Result<()> {
    let mut partial = folder.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    // Removes the remains of an interrupted run, and the files to replace.
    for leftover in [partial, folder] {
        if leftover.exists() {
            std::fs::remove_dir_all(leftover)
                .with_context(|| format!("cannot remove {}", leftover.display()))?;
        }
    }
    let (archives, root) = (partial.join("archives"), partial.join("root"));
    for made in [&archives, &root] {
        std::fs::create_dir_all(made).with_context(|| format!("cannot make {}", made.display()))?;
    }
    let mut download = apt_get();
    // A user of apt's own, who fetches for root otherwise, may not write there.
    download.args(&source.options).args(["--quiet=2", "-o", "APT::Sandbox::User=root", "download"]);
    download.args(packages);
    match packages {
        [package] => eprintln!("  $ apt-get download {package}"),
        _ => eprintln!("  $ apt-get download (these and what they depend on, {} packages)", packages.len()),
    }
    say_and_judge(download.current_dir(&archives))?;
    let entries = archives.read_dir().with_context(|| format!("cannot read {}", archives.display()))?;
    for entry in entries {
        let archive = entry.with_context(|| format!("cannot read {}", archives.display()))?.path();
        let extracted = Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&root).status();
        let extracted = extracted.context("cannot start dpkg-deb")?;
        ensure!(extracted.success(), "dpkg-deb cannot unpack {}", archive.display());
    }
    // Under this name only when it is whole.
    std::fs::rename(&root, folder).with_context(|| format!("cannot make {}", folder.display()))?;
    std::fs::remove_dir_all(partial).with_context(|| format!("cannot remove {}", partial.display()))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    // Waits for another apt-get, with a limit.
    command
        .args(["-o", "DPkg::Lock::Timeout=120"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Its output is parsed.
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null());
    command
}

/// Returns `true` if apt has a version to install of each.
fn all_known(names: &[&str]) -> bool {
    names.iter().all(|name| {
        Command::new("apt-cache")
            .args(["show", "--no-all-versions", name])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    })
}

fn try_install(names: &[&str]) -> Result<()> {
    let mut install = apt_get();
    // --no-remove: a package that conflicts with one of the user's is an error, not a removal.
    install.args(["--quiet", "--yes", "--no-install-recommends", "--no-remove"]);
    install.args(["-o", "Dpkg::Use-Pty=0", "install"]).args(names);
    eprintln!("  $ {}", system::display(&install));
    say_and_judge(&mut guard::guarded(Path::new(guard::POLICY_FILE), &install))
}

/// Runs a command that is apt-get, and shows what it says. An error is the reason in its own words.
fn say_and_judge(command: &mut Command) -> Result<()> {
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    command.stdout(writer.try_clone().context("cannot share a pipe")?).stderr(writer);
    let mut child = command.spawn().context("cannot start apt-get")?;
    // Our ends of the pipe, which would never end otherwise.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut said = String::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.context("cannot read what apt-get says")?;
        let line = String::from_utf8_lossy(&line);
        eprintln!("{line}");
        said += &line;
        said.push('\n');
    }
    let status = child.wait().context("lost apt-get")?;
    ensure!(status.success(), "{}", reason(&said).unwrap_or_else(|| format!("apt-get failed ({status})")));
    Ok(())
}

/// Why apt-get has failed, as far as what it said tells.
fn reason(said: &str) -> Option<String> {
    let block = |heading: &'static str| {
        let lines = said.lines().skip_while(move |line| !line.starts_with(heading)).skip(1);
        lines.take_while(|line| line.starts_with(' ')).map(str::trim)
    };
    let error = |line: &&str| line.starts_with("E: ") || line.starts_with("dpkg: error");
    if said.contains("\nE: Packages need to be removed") {
        let removed: Vec<_> = block("The following packages will be REMOVED:").collect();
        return Some(format!("it would remove {}, which is installed", removed.join(" ")));
    }
    if let Some(unmet) = block("The following packages have unmet dependencies:").next() {
        // Aligned for the eye.
        return Some(unmet.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    // The first is the cause, and what follows is what came of it.
    said.lines().find(error).map(|line| line.trim_start_matches("E: ").to_owned())
}

/// Keeps the services of newly installed packages from starting at the next boot.
fn disable_units(new: &[&str]) {
    // Works on the links of units, without a running systemd.
    let systemctl = |verb: &str, unit: &str| {
        let status = Command::new("systemctl").args(["--quiet", verb, unit]).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    for unit in UNITS.iter().filter(|(package, _)| new.contains(package)).flat_map(|(_, units)| *units) {
        if systemctl("is-enabled", unit) && systemctl("disable", unit) {
            eprintln!("  {unit} will not start at boot; to have it do so: systemctl enable {unit}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removal_is_the_reason() {
        let said = "Reading package lists...\nThe following packages will be REMOVED:\n  qemu-utils\n\
                    The following NEW packages will be installed:\n  qemu-system-x86\n\
                    0 upgraded, 1 newly installed, 1 to remove and 0 not upgraded.\n\
                    E: Packages need to be removed but remove is disabled.\n";
        assert_eq!(reason(said).unwrap(), "it would remove qemu-utils, which is installed");
    }

    #[test]
    fn an_unmet_dependency_is_the_reason() {
        let said = "Some packages could not be installed. This may mean that you have\n\
                    requested an impossible situation.\n\
                    The following packages have unmet dependencies:\n iperf3 : Depends: libiperf0 (= 3.12-1)   but it is not installable\n\
                    E: Unable to correct problems, you have held broken packages.\n";
        assert_eq!(reason(said).unwrap(), "iperf3 : Depends: libiperf0 (= 3.12-1) but it is not installable");
    }

    #[test]
    fn the_first_error_is_the_reason() {
        let said = "Reading package lists...\nE: Unable to locate package nothing\nE: No packages found\n";
        assert_eq!(reason(said).unwrap(), "Unable to locate package nothing");
        let said = "dpkg: error processing package coturn (--configure):\nE: Sub-process /usr/bin/dpkg returned an error code (1)\n";
        assert_eq!(reason(said).unwrap(), "dpkg: error processing package coturn (--configure):");
        assert_eq!(reason("Killed\n"), None);
    }

    #[test]
    fn a_simulation_tells_versions() {
        assert_eq!(
            to_install("Inst libfdt1 (1.6.1-4+b1 Debian:12.11/stable [amd64]) []").unwrap(),
            "libfdt1=1.6.1-4+b1"
        );
        assert_eq!(to_install("Conf libfdt1 (1.6.1-4+b1 Debian:12.11/stable [amd64])"), None);
    }

    #[test]
    fn a_failure_has_the_words_of_the_command() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo fetched; echo 'E: Failed to fetch it  404' >&2; exit 100"]);
        assert_eq!(say_and_judge(&mut command).unwrap_err().to_string(), "Failed to fetch it  404");
        say_and_judge(&mut Command::new("true")).unwrap();
        let mut command = Command::new("false");
        assert!(say_and_judge(&mut command).unwrap_err().to_string().contains("exit status: 1"));
    }
}
